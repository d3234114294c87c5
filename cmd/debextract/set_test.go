package main

import (
	"bytes"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/modpkg"
	"dkms2bin/internal/state"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// A site is an output directory with what several runs leave in it.
type site struct {
	t    *testing.T
	dir  string // of packages
	tree *state.Tree
}

func newSite(t *testing.T) *site {
	t.Helper()
	tree := &state.Tree{Path: t.TempDir(), Distribution: "debian", Architecture: "amd64"}
	assert.NilError(t, os.Mkdir(filepath.Join(tree.Path, "records"), 0o755))
	return &site{t: t, dir: t.TempDir(), tree: tree}
}

// run is one run of debextract over builds, written as "module version kernel
// status". It returns what was written of sets, and what was said.
func (s *site) run(builds ...string) (sets []string, said string) {
	s.t.Helper()
	doc := &state.Document{Tree: s.tree, OutDir: s.dir}
	for _, line := range builds {
		f := strings.Fields(line)
		module, version, release, status := f[0], f[1], f[2], f[3]
		if doc.Kernel(release) == nil {
			// 6.1.0-55-amd64 is 6.1.55-1, as Debian's are in principle.
			number := regexp.MustCompile(`^6\.1\.(?:0-)?(\d+)`).FindStringSubmatch(release)[1]
			doc.Kernels = append(doc.Kernels, state.Kernel{
				Release: release, Version: "6.1." + number + "-1", ModulesPrefix: "/lib/modules", Modversions: true,
			})
			s.add(deb.Package{Control: deb.Stanza{{Name: "Package", Value: "linux-image-" + release}, {Name: "Version", Value: "1"}}})
		}
		if doc.Package(module+"-dkms") == nil {
			doc.Packages = append(doc.Packages, state.Package{Request: module + "-dkms", Name: module + "-dkms", Version: version, Kind: state.KindArchive})
		}
		if module == "-" {
			continue
		}
		b := state.Build{
			Package: module + "-dkms", PackageVersion: version, Module: module, ModuleVersion: "1", Kernel: release,
			Status: status, ArchiveDigest: line,
		}
		doc.Builds = append(doc.Builds, b)
		if status == state.Built {
			doc.Debs = append(doc.Debs, s.modules(b))
		}
	}
	var stderr bytes.Buffer
	ships := &shipments{doc: doc, o: &options{outDir: s.dir, set: "site", image: "depends"}}
	assert.NilError(s.t, ships.writeSets(&cli.Session{Doc: doc, Msg: cli.NewMessenger("debextract", &stderr)}))
	for _, d := range doc.Debs {
		if d.Module == "" {
			sets = append(sets, d.Name+" "+d.Version)
		}
	}
	return sets, stderr.String()
}

// modules writes the package of a build.
func (s *site) modules(b state.Build) state.Deb {
	s.t.Helper()
	ko := filepath.Join(s.t.TempDir(), b.Module+".ko")
	assert.NilError(s.t, os.WriteFile(ko, nil, 0o644))
	p, err := modpkg.Spec{
		Module: b.Module, Source: b.Package, SourceVersion: b.PackageVersion, Kernel: b.Kernel, KernelVersion: "1-1", Modversions: true,
		ModulesPrefix: "/lib/modules", Architecture: "amd64", Files: []string{ko}, Time: time.Unix(1e9, 0),
	}.Compose()
	assert.NilError(s.t, err)
	path := s.add(p)
	return state.Deb{
		Path: path, Name: p.Control.Get("Package"), Version: p.Control.Get("Version"), Architecture: "amd64",
		Module: b.Module, Kernel: b.Kernel, Archive: b.ArchiveDigest,
	}
}

func (s *site) add(p deb.Package) string {
	s.t.Helper()
	for _, f := range []deb.Field{{Name: "Architecture", Value: "amd64"}, {Name: "Maintainer", Value: modpkg.Maintainer}, {Name: "Description", Value: "x"}} {
		if p.Control.Get(f.Name) == "" {
			p.Control = append(p.Control, f)
		}
	}
	p.Time = time.Unix(1e9, 0)
	path := filepath.Join(s.dir, deb.Filename(p.Control))
	_, _, err := install(path, p)
	assert.NilError(s.t, err)
	return path
}

// apt simulates apt-get where some packages are installed, and returns what it
// would install, sorted.
func (s *site) apt(installed []string, args ...string) []string {
	s.t.Helper()
	dir := s.t.TempDir()
	cmd := exec.Command("sh", "-ec", `cd "$1"; apt-ftparchive packages . >Packages`, "sh", s.dir)
	out, err := cmd.CombinedOutput()
	assert.NilError(s.t, err, "%s", out)
	var status bytes.Buffer
	for _, name := range installed {
		path := filepath.Join(s.dir, name+"_amd64.deb")
		control, err := exec.Command("dpkg-deb", "-f", path).Output()
		assert.NilError(s.t, err)
		status.WriteString("Status: install ok installed\n" + string(control) + "\n")
	}
	for _, sub := range []string{"lists/partial", "archives/partial", "log", "etc"} {
		assert.NilError(s.t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	assert.NilError(s.t, os.WriteFile(filepath.Join(dir, "status"), status.Bytes(), 0o644))
	assert.NilError(s.t, os.WriteFile(filepath.Join(dir, "sources.list"), []byte("deb [trusted=yes] file:"+s.dir+" ./\n"), 0o644))
	run := func(args ...string) string {
		s.t.Helper()
		cmd := exec.Command("apt-get", append([]string{
			"-o", "Dir::State::lists=" + dir + "/lists", "-o", "Dir::State::status=" + dir + "/status", "-o", "Dir::Cache=" + dir,
			"-o", "Dir::Log=" + dir + "/log", "-o", "Dir::Etc=" + dir + "/etc", "-o", "Dir::Etc::sourcelist=" + dir + "/sources.list",
			"-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1",
		}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		assert.NilError(s.t, err, "%s", out)
		return string(out)
	}
	run("update")
	var would []string
	for _, m := range regexp.MustCompile(`(?m)^Inst (\S+) .*?\((\S+) `).FindAllStringSubmatch(run(append([]string{"-s", "--allow-downgrades"}, args...)...), -1) {
		would = append(would, m[1]+"_"+m[2])
	}
	slices.Sort(would)
	return would
}

// TestSetFollows: images that install a set follow the kernel as a whole or not at
// all, and can go back.
func TestSetFollows(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const k1, k2 = "6.1.0-55-amd64", "6.1.0-56-amd64"
	sets, said := s.run("a 1.0-1 "+k1+" built", "b 2.0-1 "+k1+" built")
	assert.DeepEqual(t, sets, []string{"site-amd64 6.1.55.1+1.0.1+2.0.1"})
	assert.Equal(t, said, "debextract: site-amd64_6.1.55.1+1.0.1+2.0.1_amd64.deb\n")
	first := []string{"a-modules-" + k1 + "_1.0-1+1.1", "b-modules-" + k1 + "_2.0-1+1.1", "linux-image-" + k1 + "_1", "site-amd64_6.1.55.1+1.0.1+2.0.1"}
	assert.DeepEqual(t, s.apt(nil, "install", "site-amd64"), first)

	// b fails for the newer kernel, in a run for both and in one for that alone.
	for _, older := range [][]string{{"a 1.0-1 " + k1 + " built", "b 2.0-1 " + k1 + " built"}, nil} {
		sets, said = s.run(append(older, "a 1.0-1 "+k2+" built", "b 2.0-1 "+k2+" failed")...)
		assert.Equal(t, len(sets), len(older)/2)
		assert.Assert(t, strings.Contains(said, "debextract: warning: site-amd64 does not move on: b was not built for "+k2+" (failed)\n"), said)
		assert.DeepEqual(t, s.apt(first, "dist-upgrade"), []string(nil))
	}

	sets, _ = s.run("a 1.0-1 "+k1+" built", "b 2.0-1 "+k1+" built", "a 1.0-1 "+k2+" built", "b 2.0-1 "+k2+" built")
	assert.DeepEqual(t, sets, []string{"site-amd64 6.1.56.1+1.0.1+2.0.1"})
	second := []string{"a-modules-" + k2 + "_1.0-1+1.1", "b-modules-" + k2 + "_2.0-1+1.1", "linux-image-" + k2 + "_1", "site-amd64_6.1.56.1+1.0.1+2.0.1"}
	assert.DeepEqual(t, s.apt(first, "dist-upgrade"), second)
	assert.DeepEqual(t, s.apt(nil, "install", "site-amd64"), second)
	assert.DeepEqual(t, s.apt(second, "install", "site-amd64=6.1.55.1+1.0.1+2.0.1"), first)

	// A newer module, and a run for the old kernel alone.
	sets, said = s.run("a 1.1-1 "+k2+" built", "b 2.0-1 "+k2+" built")
	assert.DeepEqual(t, sets, []string{"site-amd64 6.1.56.1+1.1.1+2.0.1"})
	assert.Assert(t, !strings.Contains(said, "warning"), said)
	third := []string{"a-modules-" + k2 + "_1.1-1+1.1", "site-amd64_6.1.56.1+1.1.1+2.0.1"}
	assert.DeepEqual(t, s.apt(second, "dist-upgrade"), third)
	assert.DeepEqual(t, s.apt(append(third, second[1:3]...), "install", "site-amd64=6.1.56.1+1.0.1+2.0.1", "a-modules-"+k2+"=1.0-1+1.1"),
		[]string{second[0], second[3]})
	_, said = s.run("a 1.0-1 "+k1+" built", "b 2.0-1 "+k1+" built")
	assert.Assert(t, strings.Contains(said, "warning: site-amd64 6.1.56.1+1.1.1+2.0.1 is there, too: for apt it is newer than 6.1.55.1+1.0.1+2.0.1\n"), said)
}

func TestSets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		builds []string
		sets   []string
		says   string
	}{
		{
			"flavours",
			[]string{"a 1 6.1.0-55-amd64 built", "a 1 6.1.0-56-amd64 built", "a 1 6.1.0-55-cloud-amd64 built", "a 1 6.1.0-56-cloud-amd64 failed"},
			[]string{"site-amd64 6.1.56.1+1", "site-cloud-amd64 6.1.55.1+1"},
			"site-cloud-amd64 does not move on: a was not built for 6.1.0-56-cloud-amd64 (failed)",
		},
		{
			"not meant for a kernel",
			[]string{"a 1 6.1.0-55-amd64 built", "b 1 6.1.0-55-amd64 skipped"},
			nil,
			"site-amd64 does not move on: b was not built for 6.1.0-55-amd64 (skipped)",
		},
		{"no flavour", []string{"a 1 6.1.55 built"}, []string{"site 6.1.55.1+1"}, "site_6.1.55.1+1_amd64.deb"},
		{"not tried", []string{"a 1 6.1.0-55-amd64 built", "b 1 6.1.0-56-amd64 built"}, nil, "does not move on: a was not built for 6.1.0-56-amd64"},
		{"not installed", []string{"a 1 6.1.0-55-amd64 built", "- 1 6.1.0-55-amd64 failed"}, nil, "does not move on: --dkms was not built for 6.1.0-55-amd64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sets, said := newSite(t).run(tt.builds...)
			assert.DeepEqual(t, sets, tt.sets)
			assert.Assert(t, strings.Contains(said, tt.says), said)
		})
	}
}
