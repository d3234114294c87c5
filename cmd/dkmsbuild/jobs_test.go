package main

import (
	"bytes"
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/dkms"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// jobsOf makes the jobs of packages for kernels. A package is written as
// "P-dkms Q-dkms: a b<a,x c": it depends on Q-dkms, and of its modules a, b and c the
// second has a and x in its BUILD_DEPENDS.
func jobsOf(kernels string, packages ...string) *builder {
	b := &builder{Session: &cli.Session{Doc: &state.Document{Tree: &state.Tree{}}}, tree: &rootfs.Tree{}}
	for _, release := range strings.Fields(kernels) {
		b.kernels = append(b.kernels, state.Kernel{Release: release})
	}
	for _, text := range packages {
		head, modules, _ := strings.Cut(text, ":")
		names := strings.Fields(head)
		p := &pkg{Package: state.Package{Name: names[0], Kind: state.KindArchive, Request: names[0], Depends: names[1:]}, confs: map[string][]dkms.Conf{}}
		for _, m := range strings.Fields(modules) {
			name, needs, ok := strings.Cut(m, "<")
			var conf dkms.Conf
			if ok {
				conf.BuildDepends = strings.Split(needs, ",")
			}
			p.modules = append(p.modules, dkms.Module{Name: name, Version: "1"})
			for _, k := range b.kernels {
				p.confs[k.Release] = append(p.confs[k.Release], conf)
			}
		}
		b.packages = append(b.packages, p)
	}
	return b
}

func TestNeeds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, kernels string
		packages      []string
		want          string // needs of each job, a soft one with ?
		unmet         string
	}{
		{"none", "k", []string{"p: a b"}, "a; b", ""},
		{"within a package", "k", []string{"p: a b<a"}, "a; b: a", ""},
		{"between packages, whatever their order", "k", []string{"p: b<a", "q: a"}, "b: a; a", ""},
		{"of the same kernel", "k l", []string{"p: b<a", "q: a"}, "b: a/k; b: a/l; a; a", ""},
		{"Depends", "k", []string{"p q: b", "q: a c"}, "b: a? c?; a; c", ""},
		{"Depends and BUILD_DEPENDS", "k", []string{"p q: b<a", "q: a c"}, "b: a c?; a; c", ""},
		{"nobody has it", "k", []string{"p: b<x,a a"}, "b: a; a", "x"},
		{"its own package's comes first", "k", []string{"q: a", "p: b<a a"}, "a; b: a2; a", ""},
		{"then that of one it depends on", "k", []string{"q: a", "r: a", "p r: b<a"}, "a; a; b: a1", ""},
		{"itself", "k", []string{"p: a<a"}, "a: a", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := jobsOf(tt.kernels, tt.packages...)
			for _, p := range b.packages {
				for _, k := range b.kernels {
					for i, m := range p.modules {
						b.jobs = append(b.jobs, &job{pkg: p, kernel: k, module: m, conf: p.confs[k.Release][i]})
					}
				}
			}
			g := needsOf(b.jobs)
			var lines, unmet []string
			for i, j := range b.jobs {
				line := j.module.Name
				for n, need := range g[i] {
					o := b.jobs[need.job]
					if n == 0 {
						line += ":"
					}
					line += " " + o.module.Name
					switch {
					case len(b.kernels) > 1:
						assert.Equal(t, o.kernel.Release, j.kernel.Release)
						line += "/" + o.kernel.Release
					case strings.Contains(tt.want, "a1") || strings.Contains(tt.want, "a2"): // which of them
						line += string(rune('0' + need.job))
					}
					if !need.hard {
						line += "?"
					}
				}
				lines = append(lines, line)
				unmet = append(unmet, j.unmet...)
			}
			assert.Equal(t, strings.Join(lines, "; "), tt.want)
			assert.Equal(t, strings.Join(unmet, " "), tt.unmet)
		})
	}
}

func TestUnbuilt(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                     string
		packages                 []string
		failed, skipped          string
		broken                   string // package that cannot be installed
		of, want, wantedExcluded string
	}{
		{name: "nothing", packages: []string{"p: a b<a"}, of: "b"},
		{name: "by BUILD_DEPENDS", packages: []string{"p: a b<a"}, failed: "a", of: "b", want: "needs a 1, whose build failed"},
		{name: "by Depends", packages: []string{"p q: b", "q: a"}, failed: "a", of: "b", want: "needs a 1, whose build failed"},
		{name: "not meant for it", packages: []string{"p: a b<a"}, skipped: "a", of: "b", wantedExcluded: "needs a 1, which is not meant for this kernel"},
		{name: "not meant for it, and only in Depends", packages: []string{"p q: b", "q: a"}, skipped: "a", of: "b"},
		{name: "a package", packages: []string{"p q: b", "q: a"}, broken: "q", of: "b", want: "needs q, which cannot be installed"},
		{name: "a cycle", packages: []string{"p: a<b b<c c<a"}, of: "b", want: "needs itself: b 1 needs c 1, which needs a 1, which needs b 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := jobsOf("k", tt.packages...)
			for _, p := range b.packages {
				if p.Name == tt.broken {
					p.Error, p.modules = "no", nil
				}
			}
			b.planJobs()
			at := -1
			for i, j := range b.jobs {
				switch name := j.module.Name; {
				case name == tt.of:
					at = i
				case name == tt.failed || j.pkg.Error != "":
					j.record.Status = state.Failed
				case name == tt.skipped:
					j.record.Status = state.Skipped
				default:
					j.record.Status = state.Built
				}
			}
			assert.Equal(t, b.unbuilt(at), tt.want)
			assert.Equal(t, b.excluded(at), tt.wantedExcluded)
		})
	}
}

// TestReport: whatever ends first, messages and records have the order of packages,
// kernels and modules.
func TestReport(t *testing.T) {
	t.Parallel()
	run := func(order []int, interrupted bool) (string, []string) {
		b := jobsOf("k l", "p-dkms: a b", "q-dkms: c")
		var out bytes.Buffer
		b.Msg = cli.NewMessenger("dkmsbuild", &out)
		b.planJobs()
		b.save()
		b.Doc.Kernels = b.kernels
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		r := &reporter{builder: b}
		for _, i := range order {
			j := b.jobs[i]
			j.begun, j.done = true, true
			j.record = state.Build{Package: j.pkg.Name, Module: j.module.Name, ModuleVersion: "1", Kernel: j.kernel.Release, Status: state.Built}
			if j.module.Name == "b" && j.kernel.Release == "l" {
				j.record.Status, j.record.Reason, j.record.Log = state.Failed, "error: no", "/log"
			}
			r.advance()
		}
		if interrupted {
			for _, j := range b.jobs {
				j.begun = j.begun || j.module.Name == "a"
			}
			cancel(errors.New("interrupted"))
		}
		r.finish(ctx)
		var records []string
		for _, r := range b.Doc.Builds {
			records = append(records, r.Module+"/"+r.Kernel)
		}
		return out.String(), records
	}
	const whole = `... installing p-dkms package, building for k .. OK
... installing p-dkms package, building for l .. FAILED
dkmsbuild: warning: p-dkms: cannot build b 1 for l: error: no
dkmsbuild: hint: the whole log is /log
... installing q-dkms package, building for k .. OK
... installing q-dkms package, building for l .. OK
`
	for _, order := range [][]int{{0, 1, 2, 3, 4, 5}, {5, 4, 3, 2, 1, 0}, {4, 2, 0, 5, 3, 1}} {
		text, records := run(order, false)
		assert.Equal(t, text, whole)
		assert.DeepEqual(t, records, []string{"a/k", "a/l", "b/k", "b/l", "c/k", "c/l"})
	}
	text, records := run([]int{5, 1}, true)
	assert.Equal(t, text, `... installing p-dkms package, building for k .. INTERRUPTED
... installing p-dkms package, building for l .. INTERRUPTED
... installing q-dkms package, building for l .. OK
`)
	slices.Sort(records)
	assert.DeepEqual(t, records, []string{"b/k", "c/l"})
}

func TestRelations(t *testing.T) {
	t.Parallel()
	assert.DeepEqual(t, relations("dkms (>= 2.1), xtables-addons-dkms:any, a | b (= 1) [amd64]|d,\n c"),
		[][]string{{"dkms"}, {"xtables-addons-dkms"}, {"a", "b", "d"}, {"c"}})
	assert.Assert(t, relations(" , ") == nil)
	assert.DeepEqual(t, names("a (= 1), b", ","), []string{"a", "b"})
}

// TestCompanions: what a package depends on, and is of this run, is installed with it.
func TestCompanions(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, depends, want string }{
		{"nothing", "p: dkms, libc6", ""},
		{"one", "p: dkms, q; q: dkms", "q"},
		{"over several steps", "p: q; q: r; r: ", "q r"},
		{"provided", "p: virtual (>= 1); q: / virtual", "q"},
		{"the first alternative that is there", "p: nosuch | q | r; q: ; r: ", "q"},
		{"each other", "p: q; q: p", "q"},
		{"itself", "p: virtual; q: ; p2: / virtual", "p2"},
		{"kept from an earlier run", "p: q, r; q+: ; r: ", "r"},
		{"not others' needs", "p: ; q: r; r: ", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := &builder{}
			for text := range strings.SplitSeq(tt.depends, "; ") {
				name, fields, _ := strings.Cut(text, ":")
				depends, provides, _ := strings.Cut(fields, "/")
				name, kept := strings.CutSuffix(name, "+")
				b.packages = append(b.packages, &pkg{
					Package: state.Package{Name: name, Kind: state.KindArchive}, kept: kept, depends: relations(depends), provides: names(provides, ","),
				})
			}
			var got []string
			for _, q := range b.companions(b.packages[0]) {
				got = append(got, q.Name)
			}
			assert.Equal(t, strings.Join(got, " "), tt.want)
		})
	}
}
