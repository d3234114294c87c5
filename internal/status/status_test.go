package status

import (
	"dkms2bin/internal/diag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

var day = time.Date(2026, 11, 22, 20, 15, 0, 0, time.UTC)

func encode(t testing.TB, s *Status) string {
	t.Helper()
	raw, err := s.Encode()
	assert.NilError(t, err)
	return string(raw)
}

// TestMergeLeftOut: what is left out tells records apart, too.
func TestMergeLeftOut(t *testing.T) {
	t.Parallel()
	x, y := Record{Module: "a", Status: Built, Date: day, LeftOut: []string{"x"}}, Record{Module: "a", Status: Built, Date: day, LeftOut: []string{"y"}}
	for _, records := range [][]Record{{x, y}, {y, x}} {
		s := &Status{}
		s.Merge(records)
		assert.DeepEqual(t, s.Records, []Record{y})
	}
}

// TestMergeOrder merges the same records in many orders and portions: several
// hosts' runs come to the same, and none counts twice.
func TestMergeOrder(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	one := func(list ...string) string { return list[random.IntN(len(list))] }
	for range 50 {
		records := make([]Record, 30)
		for i := range records {
			records[i] = Record{
				Architecture: one("amd64", "arm64"), Package: one("a-dkms", "b-dkms"), PackageVersion: one("", "1", "2"),
				Module: one("", "a", "b"), Kernel: one("6.1.0-1-amd64", "6.1.0-2-amd64"), Status: one(Built, Skipped, Failed),
				Reason: one("", "x", "y"), Signer: one("", "x"), LeftOut: strings.Fields(one("", "x", "x y")), SigKey: one("", "01"), Date: day.Add(time.Duration(random.IntN(4)) * time.Hour), Seconds: float64(random.IntN(2)),
			}
		}
		whole := &Status{}
		whole.Merge(records)
		want := encode(t, whole)

		random.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		cut := random.IntN(len(records))
		parts := &Status{}
		parts.Merge(records[:cut])
		parts.Merge(records[cut:])
		assert.Equal(t, encode(t, parts), want)
		parts.Merge(records[:cut])
		parts.Merge(nil)
		assert.Equal(t, encode(t, parts), want)

		left, right := &Status{}, &Status{}
		left.Merge(records[:cut])
		right.Merge(records[cut:])
		right.Merge(left.Records)
		assert.Equal(t, encode(t, right), want)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	record := func(version, module, status string, hour int) Record {
		return Record{
			Architecture: "amd64", Package: "a-dkms", PackageVersion: version, Module: module, Kernel: "6.1.0-1-amd64",
			Status: status, Date: day.Add(time.Duration(hour) * time.Hour),
		}
	}
	tests := []struct {
		name     string
		in, want []Record
	}{
		{"nothing", nil, nil},
		{"fails, then succeeds", []Record{record("1", "a", Failed, 1), record("1", "a", Built, 2)}, []Record{record("1", "a", Built, 2)}},
		{"succeeds, then fails", []Record{record("1", "a", Built, 1), record("1", "a", Failed, 2)}, []Record{record("1", "a", Failed, 2)}},
		{
			"two versions",
			[]Record{record("2", "a", Failed, 2), record("1", "a", Built, 1)},
			[]Record{record("1", "a", Built, 1), record("2", "a", Failed, 2)},
		},
		{"cannot be installed, then can", []Record{record("1", "", Failed, 1), record("1", "a", Failed, 2)}, []Record{record("1", "a", Failed, 2)}},
		{"the same, at once", []Record{record("1", "", Failed, 1), record("1", "a", Built, 1)}, []Record{record("1", "a", Built, 1)}},
		{"the same, of an unknown version", []Record{record("", "", Failed, 1), record("1", "a", Built, 2)}, []Record{record("1", "a", Built, 2)}},
		{
			"can be installed, then cannot",
			[]Record{record("1", "a", Built, 1), record("1", "", Failed, 2)},
			[]Record{record("1", "", Failed, 2), record("1", "a", Built, 1)},
		},
		{
			"another version can be installed",
			[]Record{record("2", "", Failed, 1), record("1", "a", Built, 2)},
			[]Record{record("1", "a", Built, 2), record("2", "", Failed, 1)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for range 2 {
				s := &Status{}
				s.Merge(tt.in)
				assert.DeepEqual(t, s.Records, tt.want)
				slices.Reverse(tt.in)
			}
		})
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	s := &Status{
		Repository: Repository{Description: "a < b", Updated: day.In(time.FixedZone("", 3600))},
		Records: []Record{
			{Architecture: "amd64", Package: "b-dkms", Module: "b", Kernel: "6.1.0-1-amd64", Status: Built, Debs: []string{"b.deb"}, Date: day},
			{Architecture: "amd64", Package: "a-dkms", Kernel: "6.1.0-1-amd64", Status: Failed, Reason: "no", Date: day},
		},
		Packages: []Package{{Name: "b", Version: "1", Architecture: "amd64", Filename: "b.deb"}},
	}
	assert.Equal(t, encode(t, s), `{"version":1,"repository":{"description":"a < b","origin":"","updated":"2026-11-22T20:15:00Z"},"records":[
{"architecture":"amd64","package":"a-dkms","kernel":"6.1.0-1-amd64","status":"failed","reason":"no","date":"2026-11-22T20:15:00Z"},
{"architecture":"amd64","package":"b-dkms","module":"b","kernel":"6.1.0-1-amd64","status":"built","debs":["b.deb"],"date":"2026-11-22T20:15:00Z"}
],"packages":[
{"name":"b","version":"1","architecture":"amd64","filename":"b.deb"}
]}
`)
	assert.Equal(t, s.Records[0].Package, "b-dkms", "Encode changed what it encodes")
	slices.Reverse(s.Records)
	again, err := Parse([]byte(encode(t, s)))
	assert.NilError(t, err)
	assert.Equal(t, encode(t, again), encode(t, s))
	again, err = ParseRecords([]byte(encode(t, s)))
	assert.NilError(t, err)
	assert.Equal(t, len(again.Packages), 0)
	again.Packages = s.Packages
	assert.Equal(t, encode(t, again), encode(t, s))

	assert.Assert(t, strings.Contains(encode(t, &Status{}), "\"records\":[\n],"))
	_, err = (&Status{Records: []Record{{Seconds: math.NaN()}}}).Encode()
	assert.ErrorContains(t, err, "cannot encode the status")
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, want string }{
		{"nothing", "", "unexpected end"},
		{"null", "null", "it has no version"},
		{"an array", "[]", "cannot unmarshal array"},
		{"no version", `{"records":[]}`, "it has no version"},
		{"version a string", `{"version":"1"}`, "cannot unmarshal string"},
		{"newer", `{"version":2,"forest":{}}`, "it has version 2, this program knows version 1"},
		{"unknown field", `{"version":1,"forest":{}}`, `unknown field "forest"`},
		{"unknown field in a record", `{"version":1,"records":[{"status":"built","colour":"red"}]}`, `unknown field "colour"`},
		{"two", `{"version":1} {"version":1}`, "something follows it"},
		{"truncated", `{"version":1,"records":[`, "unexpected end"},
		{"no status", `{"version":1,"records":[{"status":"built"},{}]}`, `record 2 has the unknown status ""`},
		{"unknown status", `{"version":1,"records":[{"status":"burnt"}]}`, `unknown status "burnt"`},
		{"no date", `{"version":1,"records":[{"status":"built","date":"today"}]}`, "cannot parse"},
		{"a date without UTC", `{"version":1,"records":[{"status":"built","date":"9999-12-31T23:59:59-01:00"}]}`, "not in the years 0 to 9999"},
		{"updated without UTC", `{"version":1,"repository":{"updated":"9999-12-31T23:59:59-01:00"}}`, "not in the years 0 to 9999"},
		{"deep", strings.Repeat(`{"version":`, 20000), "cannot read the status"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := Parse([]byte(tt.in))
			assert.ErrorContains(t, err, "cannot read the status: ")
			assert.ErrorContains(t, err, tt.want)
			assert.Assert(t, s == nil)
			_, records := ParseRecords([]byte(tt.in))
			assert.Error(t, records, err.Error())
		})
	}
	_, err := Parse([]byte(`{"version":2}`))
	assert.Assert(t, diag.Hint(err) != "")
}

// FuzzParse takes whatever can be read through all that is done with it.
func FuzzParse(f *testing.F) {
	f.Add([]byte(encode(f, sample())))
	f.Add([]byte(encode(f, hostile())))
	f.Add([]byte(`{"version":1,"records":[{"status":"built","date":"0000-01-01T00:00:00+23:59"}]}`))
	f.Add([]byte(`{"version":1,"records":[{"status":"failed","seconds":-1e300,"kernel":"-","debs":["/",""]}],"packages":[{"kernel":"-"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw)
		if err != nil {
			return
		}
		s.Merge(s.Records)
		first := encode(t, s)
		again, err := Parse([]byte(first))
		assert.NilError(t, err)
		again.Merge(s.Records)
		assert.Equal(t, encode(t, again), first)
		page, err := s.Page()
		assert.NilError(t, err)
		assert.Equal(t, strings.Count(string(page), "<script"), 1)
		assert.Assert(t, !strings.Contains(string(page), "ZgotmplZ"), "a link that the template refuses")
	})
}

func BenchmarkPage(b *testing.B) {
	s := &Status{}
	for k := range 100 {
		for m := range 40 {
			r := Record{
				Architecture: "amd64", Package: fmt.Sprintf("module%d-dkms", m), PackageVersion: "1.2-1", Module: fmt.Sprintf("module%d", m),
				ModuleVersion: "1.2", Kernel: fmt.Sprintf("6.1.0-%d-amd64", k), Status: Built, Date: day, Log: "logs/some-module.log",
			}
			s.Records = append(s.Records, r)
		}
	}
	for b.Loop() {
		if _, err := s.Page(); err != nil {
			b.Fatal(err)
		}
	}
}
