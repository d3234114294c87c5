package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"gotest.tools/v3/assert"
)

// full has every field of a document set.
func full(t testing.TB) *Document {
	t.Helper()
	d := &Document{}
	fill(t, reflect.ValueOf(d).Elem())
	d.Version, d.Minor = Version, Minor
	return d
}

// fill sets v and all that it is made of to values that are not zero.
func fill(t testing.TB, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 11, 22, 21, 42, 7, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.String:
		v.SetString("<a & \"b\"> \u2028 ü")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Float64:
		v.SetFloat(1.25)
	default:
		t.Fatalf("a document has a %s, which this test does not know", v.Type())
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, doc := range map[string]*Document{"empty": {Version: Version, Minor: Minor}, "full": full(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := doc.Encode()
			assert.NilError(t, err)
			again, err := Read(bytes.NewReader(raw))
			assert.NilError(t, err)
			assert.DeepEqual(t, again, doc)
			twice, err := again.Encode()
			assert.NilError(t, err)
			assert.Equal(t, string(twice), string(raw))
			assert.Assert(t, bytes.HasSuffix(raw, []byte("\n}\n")) || bytes.Equal(raw, []byte("{\n  \"version\": 1,\n  \"minor\": 1\n}\n")), "%s", raw)
		})
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	// jq and people read it: no escapes for HTML, no fields without a value
	// but those whose absence would have to be explained.
	raw, err := (&Document{
		Kernels: []Kernel{{Release: "6.1.0-56-amd64"}},
		Builds:  []Build{{Package: "p", Kernel: "k", Status: Failed, Reason: "a < b && c"}},
	}).Encode()
	assert.NilError(t, err)
	assert.Equal(t, string(raw), `{
  "version": 1,
  "minor": 1,
  "kernels": [
    {
      "release": "6.1.0-56-amd64",
      "requested": false,
      "headers_package": "",
      "package_version": "",
      "modversions": false
    }
  ],
  "builds": [
    {
      "package": "p",
      "kernel": "k",
      "status": "failed",
      "reason": "a < b && c"
    }
  ]
}
`)
	_, err = (&Document{Builds: []Build{{Seconds: nan()}}}).Encode()
	assert.ErrorContains(t, err, "cannot encode the document")
}

func nan() float64 { zero := 0.0; return zero / zero }

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, want string }{
		{"two documents", `{"version":1} {"version":1}`, "more than one"},
		{"two documents, one a line", "{\"version\":1}\n{\"version\":1}\n", "more than one"},
		{"trailing garbage", `{"version":1} x`, "follows the document"},
		{"trailing brace", `{"version":1}}`, "follows the document"},
		{"trailing NUL", "{\"version\":1}\x00", "follows the document"},
		{"truncated", `{"version":1,"tree":{"path":"/var`, "not a dkms2bin document: unexpected EOF"},
		{"truncated at a comma", `{"version":1,`, "not a dkms2bin document: unexpected EOF"},
		{"truncated before the version", `{`, "not a dkms2bin document"},
		{"an array", `[{"version":1}]`, "not a dkms2bin document"},
		{"null", `null`, "it has no version"},
		{"a string", `"version"`, "not a dkms2bin document"},
		{"a number", `1`, "not a dkms2bin document"},
		{"no JSON", `version: 1`, "not a dkms2bin document"},
		{"HTML", `<html>`, "not a dkms2bin document"},
		{"foreign", `{"name":"x","builds":3}`, "it has no version"},
		{"no version", `{"builds":[]}`, "it has no version"},
		{"version null", `{"version":null}`, "it has no version"},
		{"version a string", `{"version":"1"}`, "not a dkms2bin document"},
		{"version a fraction", `{"version":1.5}`, "not a dkms2bin document"},
		{"newer", `{"version":2}`, "has version 2.0, this program knows version 1 up to 1.1"},
		{"newer minor", `{"version":1,"minor":2,"forest":{}}`, "has version 1.2, this program knows version 1 up to 1.1"},
		{"minor negative", `{"version":1,"minor":-1}`, "has version 1.-1"},
		{"minor a text", `{"version":1,"minor":"1"}`, "not a dkms2bin document"},
		{"newer, otherwise not known", `{"version":2,"trees":[]}`, "has version 2"},
		{"version 0", `{"version":0}`, "has version 0"},
		{"negative", `{"version":-1}`, "has version -1"},
		{"unknown field", `{"version":1,"forest":{}}`, `unknown field "forest"`},
		{"unknown field inside", `{"version":1,"builds":[{"colour":"red"}]}`, `unknown field "colour"`},
		{"wrong type", `{"version":1,"builds":{}}`, "not a dkms2bin document"},
		{"wrong type inside", `{"version":1,"tree":{"path":1}}`, "not a dkms2bin document"},
		{"no time", `{"version":1,"tree":{"created":"yesterday"}}`, "not a dkms2bin document"},
		{"deep", strings.Repeat(`{"version":`, 20000), "not a dkms2bin document"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			doc, err := Read(strings.NewReader(tt.in))
			assert.ErrorContains(t, err, tt.want)
			assert.Assert(t, doc == nil)
			assert.Assert(t, !errors.Is(err, ErrEmpty))
		})
	}
	for _, in := range []string{"", "\n", " \t\r\n\n"} {
		_, err := Read(strings.NewReader(in))
		assert.ErrorIs(t, err, ErrEmpty, "%q", in)
	}
	_, err := Read(iotest.ErrReader(os.ErrClosed))
	assert.ErrorIs(t, err, os.ErrClosed)
	assert.ErrorContains(t, err, "cannot read the document")
	_, err = Read(io.MultiReader(strings.NewReader(`{"version":1}`), iotest.ErrReader(io.ErrUnexpectedEOF)))
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestParseIsBounded(t *testing.T) {
	t.Parallel()
	_, err := Parse(make([]byte, maxSize+1))
	assert.ErrorContains(t, err, "larger than 256 MiB")
	_, err = Parse(make([]byte, 1<<10))
	assert.ErrorContains(t, err, "not a dkms2bin document")
}

func TestReadLarge(t *testing.T) {
	t.Parallel()
	doc := &Document{Version: Version}
	for range 2000 { // more than one buffer
		doc.Builds = append(doc.Builds, Build{Package: "p", Module: "m", Kernel: "k", Status: Built})
	}
	raw, err := doc.Encode()
	assert.NilError(t, err)
	again, err := Read(iotest.HalfReader(bytes.NewReader(raw)))
	assert.NilError(t, err)
	assert.Equal(t, len(again.Builds), 2000)
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	failed := []Build{{Status: Built}, {Status: Failed}}
	left := &Index{Left: []Problem{{Path: "/x"}}}
	tests := []struct {
		name string
		doc  Document
		want int
	}{
		{"nothing", Document{}, 0},
		{"built and skipped", Document{Builds: []Build{{Status: Built}, {Status: Skipped}}}, 0},
		{"some failed", Document{Builds: failed}, 3},
		{"all failed", Document{Builds: failed[1:]}, 3},
		{"indexed", Document{Index: &Index{Packages: 3}}, 0},
		{"left out of the index", Document{Index: left}, 3},
		{"audited", Document{Audit: &Audit{Modules: []InstalledModule{{Package: "p", Loads: LoadsYes}, {Package: "p", Loads: LoadsUnknown}}}}, 0},
		{"cannot load", Document{Audit: &Audit{Modules: []InstalledModule{{Package: "p", Loads: LoadsNo}}}}, 3},
		{"no package owns it", Document{Audit: &Audit{Modules: []InstalledModule{{Loads: LoadsYes}}}}, 3},
		{"another file than the package's", Document{Audit: &Audit{Modules: []InstalledModule{{Package: "p", Loads: LoadsYes, Altered: true}}}}, 3},
		{"an error", Document{Error: &Error{Kind: KindFailed}}, 1},
		{"an error of no known kind", Document{Error: &Error{}}, 1},
		{"wrong usage", Document{Error: &Error{Kind: KindUsage}}, 2},
		{"interrupted", Document{Error: &Error{Kind: KindInterrupted}}, 130},
		{"an error outweighs failed builds", Document{Builds: failed, Index: left, Error: &Error{Kind: KindFailed}}, 1},
		{"so does an interruption", Document{Builds: failed, Error: &Error{Kind: KindInterrupted}}, 130},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tt.doc.ExitCode(), tt.want)
			raw, err := tt.doc.Encode()
			assert.NilError(t, err)
			doc, err := Parse(raw)
			assert.NilError(t, err)
			assert.Equal(t, doc.ExitCode(), tt.want, "a document is all that the next stage knows")
		})
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	doc := &Document{Kernels: []Kernel{{Release: "a"}, {Release: "b"}}, Packages: []Package{{Name: "a"}, {Name: "b"}}}
	doc.Kernel("b").Layer = "changed"
	doc.Package("b").Layer = "changed"
	assert.Equal(t, doc.Kernels[1].Layer, "changed")
	assert.Equal(t, doc.Packages[1].Layer, "changed")
	assert.Assert(t, doc.Kernel("c") == nil)
	assert.Assert(t, doc.Package("c") == nil)
}

func TestDigest(t *testing.T) {
	t.Parallel()
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2, B.1
	got, err := Digest(strings.NewReader("abc"))
	assert.NilError(t, err)
	assert.Equal(t, got, abc)
	path := filepath.Join(t.TempDir(), "file")
	assert.NilError(t, os.WriteFile(path, []byte("abc"), 0o600))
	got, err = FileDigest(path)
	assert.NilError(t, err)
	assert.Equal(t, got, abc)
	_, err = FileDigest(path + "x")
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Digest(iotest.ErrReader(io.ErrUnexpectedEOF))
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// What is read is written again as the same document, and a document that was
// accepted is one JSON value with the version.
func FuzzParse(f *testing.F) {
	raw, err := full(f).Encode()
	assert.NilError(f, err)
	for _, seed := range []string{
		string(raw), string(raw[:len(raw)/2]), "", " \n", `{"version":1}`, `{"version":1}{"version":1}`, `{"version":2}`, `{"Version":1}`,
		`{"version":1,"VERSION":2}`, `{"version":1,"minor":1}`, `{"version":1,"minor":0,"MINOR":2}`, `{"version":1,"version":3}`, `{"version":1,"tree":null,"builds":[{}]}`, `[]`, `null`, `{"version":1,"x":0}`,
		`{"version":1,"tree":{"created":"2026-11-22T21:42:07.5+23:59"}}`, "{\"version\":1,\"tree\":{\"path\":\"\xff\"}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := Parse(raw)
		if err != nil {
			assert.Assert(t, doc == nil)
			return
		}
		assert.Assert(t, json.Valid(raw))
		assert.Equal(t, doc.Version, Version)
		assert.Assert(t, doc.Minor >= 0 && doc.Minor <= Minor)
		once, err := doc.Encode()
		assert.NilError(t, err)
		again, err := Parse(once)
		assert.NilError(t, err)
		twice, err := again.Encode()
		assert.NilError(t, err)
		assert.Equal(t, string(twice), string(once))
		assert.Equal(t, again.ExitCode(), doc.ExitCode())
	})
}
