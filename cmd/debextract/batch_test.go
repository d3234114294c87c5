package main

import (
	"debug/elf"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/kernel"
	"dkms2bin/internal/state"
	"errors"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

const vermagic = "6.1.0-56-amd64 SMP preempt mod_unload modversions "

// testBatch is a kernel that exports _printk, and ib_reg in its module ib_core.
func testBatch(candidates ...*candidate) *batch {
	symvers := kernel.Symvers{
		"_printk": {Symbol: "_printk", Module: "vmlinux", CRC: 1},
		"ib_reg":  {Symbol: "ib_reg", Module: "drivers/infiniband/core/ib_core", CRC: 2},
	}
	return &batch{
		facts: kernel.Facts{
			Release: "6.1.0-56-amd64", Vermagic: vermagic, Modversions: true,
			Arch: "amd64", Machine: elf.EM_X86_64, Class: elf.ELFCLASS64, Data: elf.ELFDATA2LSB,
		},
		symvers: symvers, own: symvers.Modules(), candidates: candidates,
	}
}

// testCandidate is a build of one module. needs are symbols that it was built against,
// each with the CRC behind it; exports likewise.
func testCandidate(name string, depends []string, needs, exports map[string]uint32) *candidate {
	m := kernel.Module{
		Path: "/x/" + name + ".ko", Name: name, Vermagic: vermagic, License: "GPL", Versions: needs,
		Machine: elf.EM_X86_64, Class: elf.ELFCLASS64, Data: elf.ELFDATA2LSB,
	}
	if needs == nil {
		m.Versions = map[string]uint32{}
	}
	for symbol := range needs {
		m.Imports = append(m.Imports, kernel.Import{Symbol: symbol})
	}
	for symbol, crc := range exports {
		m.Exports = append(m.Exports, kernel.Export{Symbol: symbol, Module: name, CRC: crc})
	}
	return &candidate{
		build:   &state.Build{Package: name + "-dkms", Module: name, ModuleVersion: "1", Depends: depends},
		modules: []kernel.Module{m},
	}
}

type crcs = map[string]uint32

func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		candidates []*candidate
		want       map[string]string // errors by module
	}{
		{"alone", []*candidate{testCandidate("a", nil, crcs{"_printk": 1}, nil)}, nil},
		{
			"a chain, the last one first",
			[]*candidate{
				testCandidate("c", []string{"b/1"}, crcs{"a1": 5, "b1": 6}, nil),
				testCandidate("b", []string{"a/1"}, crcs{"a1": 5}, crcs{"b1": 6}),
				testCandidate("a", nil, nil, crcs{"a1": 5}),
			},
			nil,
		},
		{
			"what is below cannot be loaded",
			[]*candidate{
				testCandidate("a", nil, crcs{"gone": 1}, crcs{"a1": 5}),
				testCandidate("b", []string{"a/1"}, crcs{"a1": 5}, nil),
				testCandidate("c", []string{"b/1"}, crcs{"_printk": 1}, nil),
				testCandidate("d", nil, crcs{"_printk": 1}, nil),
			},
			map[string]string{
				"a": "module a.ko needs the symbol gone",
				"b": "it was built on a 1, which cannot be loaded: module a.ko needs the symbol gone",
				"c": "it was built on a 1, which cannot be loaded",
			},
		},
		{"in a circle", []*candidate{testCandidate("a", []string{"b/1"}, crcs{"b1": 1}, crcs{"a1": 1}), testCandidate("b", []string{"a/1"}, crcs{"a1": 1}, crcs{"b1": 1})}, nil},
		{"depends on what is not there", []*candidate{testCandidate("a", []string{"z/9"}, crcs{"_printk": 1}, nil)}, nil},
		{
			"a module is replaced",
			[]*candidate{
				testCandidate("user", nil, crcs{"ib_reg": 2}, nil),
				testCandidate("built_on", []string{"ib_core/1"}, crcs{"ib_reg": 77}, nil),
				testCandidate("ib_core", nil, nil, crcs{"ib_reg": 77}),
			},
			map[string]string{"user": "module user.ko was built against the symbol ib_reg of the kernel's own module ib_core, which ib_core.ko of ib_core-dkms replaces"},
		},
		{
			"what cannot be loaded replaces nothing",
			[]*candidate{testCandidate("user", nil, crcs{"ib_reg": 2}, nil), testCandidate("ib_core", nil, crcs{"gone": 1}, crcs{"ib_reg": 77})},
			map[string]string{"ib_core": "module ib_core.ko needs the symbol gone"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testBatch(tt.candidates...).judge()
			for _, m := range tt.candidates {
				if want := tt.want[m.build.Module]; want != "" {
					assert.ErrorContains(t, m.err, want)
					continue
				}
				assert.NilError(t, m.err, m.build.Module)
			}
		})
	}
}

func TestJudgeNamesWhoHasTheSymbol(t *testing.T) {
	t.Parallel()
	a, b := testCandidate("a", nil, nil, crcs{"a1": 5}), testCandidate("b", nil, crcs{"a1": 5}, nil)
	broken := &candidate{build: &state.Build{Module: "broken"}, err: errors.New("no archive")}
	s := testBatch(b, broken, a)
	s.judge()
	assert.Equal(t, diag.Hint(b.err), "a.ko of a-dkms exports it: name a in BUILD_DEPENDS of the dkms.conf of b")
	assert.Error(t, broken.err, "no archive")
}

// testBuild is a build of the modules of several.
func testBuild(name string, depends []string, of ...*candidate) *candidate {
	m := testCandidate(name, depends, nil, nil)
	m.modules = nil
	for _, o := range of {
		m.modules = append(m.modules, o.modules...)
	}
	return m
}

func TestLeftOut(t *testing.T) {
	t.Parallel()
	mod := func(name string, needs, exports crcs) *candidate { return testCandidate(name, nil, needs, exports) }
	good := func() *candidate { return mod("good", crcs{"_printk": 1}, nil) }
	gone := func() *candidate { return mod("gone", crcs{"nowhere": 9}, crcs{"gone1": 5}) }
	const noOne = ".ko needs the symbol nowhere, which neither 6.1.0-56-amd64 nor a module that it depends on exports"
	tests := []struct {
		name       string
		candidates []*candidate
		left       map[string][]string // by build; the others are built whole
		failed     map[string]string
	}{
		{
			"one of two",
			[]*candidate{testBuild("b", nil, gone(), good())},
			map[string][]string{"b": {"gone.ko: module gone" + noOne}},
			nil,
		},
		{
			"and what needs it, at whatever remove",
			[]*candidate{testBuild("b", nil, mod("far", crcs{"near1": 6}, nil), mod("near", crcs{"gone1": 5}, crcs{"near1": 6}), gone(), good())},
			map[string][]string{"b": {
				"gone.ko: module gone" + noOne,
				"near.ko: module near.ko needs the symbol gone1 of the module gone, which is left out",
				"far.ko: module far.ko needs the symbol near1 of the module near, which is left out",
			}},
			nil,
		},
		{
			"another one has what it exports",
			[]*candidate{testBuild("b", nil, gone(), mod("twin", nil, crcs{"gone1": 5}), mod("user", crcs{"gone1": 5}, nil))},
			map[string][]string{"b": {"gone.ko: module gone" + noOne}},
			nil,
		},
		{
			"none remains",
			[]*candidate{testBuild("b", nil, mod("near", crcs{"gone1": 5}, nil), gone(), mod("other", crcs{"nowhere": 9}, nil))},
			nil,
			map[string]string{"b": "module gone" + noOne},
		},
		{
			"something else is wrong, too",
			[]*candidate{testBuild("b", nil, gone(), mod("old", crcs{"_printk": 7}, nil), good())},
			nil,
			map[string]string{"b": "module old.ko was built against another version of the symbol _printk"},
		},
		{
			"of what another build is built on",
			[]*candidate{
				testBuild("c", []string{"b/1"}, mod("calls", crcs{"gone1": 5}, nil), mod("calm", crcs{"_printk": 1}, nil)),
				testBuild("d", []string{"b/1"}, mod("alone", crcs{"gone1": 5}, nil)),
				testBuild("e", []string{"b/1"}, mod("content", crcs{"good1": 8}, nil)),
				testBuild("b", nil, gone(), mod("good", nil, crcs{"good1": 8})),
			},
			map[string][]string{
				"b": {"gone.ko: module gone" + noOne},
				"c": {"calls.ko: module calls.ko needs the symbol gone1 of the module gone, which is left out"},
			},
			map[string]string{"d": "module alone.ko needs the symbol gone1 of the module gone, which is left out"},
		},
		{
			"in a circle",
			[]*candidate{
				testBuild("b", []string{"c/1"}, gone(), good()),
				testBuild("c", []string{"b/1"}, mod("calls", crcs{"gone1": 5}, nil), mod("calm", crcs{"_printk": 1}, nil)),
			},
			map[string][]string{
				"b": {"gone.ko: module gone" + noOne},
				"c": {"calls.ko: module calls.ko needs the symbol gone1 of the module gone, which is left out"},
			},
			nil,
		},
		{
			"another build has it",
			[]*candidate{testBuild("b", nil, gone(), good()), testBuild("c", nil, mod("has", nil, crcs{"nowhere": 9}))},
			nil,
			map[string]string{"b": "module gone" + noOne},
		},
		{
			"another build has what it exports",
			[]*candidate{testBuild("b", nil, gone(), mod("near", crcs{"gone1": 5}, nil), good()), testBuild("c", nil, mod("has", nil, crcs{"gone1": 5}))},
			map[string][]string{"b": {"gone.ko: module gone" + noOne, "near.ko: module near.ko needs the symbol gone1 of the module gone, which is left out"}},
			nil,
		},
		{
			"that of the kernel's own module is replaced",
			[]*candidate{testBuild("b", nil, mod("user", crcs{"ib_reg": 2}, nil), good()), testBuild("c", nil, mod("ib_core", nil, crcs{"ib_other": 3}))},
			nil,
			map[string]string{"b": "module user.ko was built against the symbol ib_reg of the kernel's own module ib_core, which ib_core.ko of c-dkms replaces"},
		},
		{
			"what is left out replaces nothing",
			[]*candidate{testBuild("c", nil, mod("user", crcs{"ib_reg": 2}, nil)), testBuild("b", nil, mod("ib_core", crcs{"nowhere": 9}, crcs{"ib_reg": 77}), good())},
			map[string][]string{"b": {"ib_core.ko: module ib_core" + noOne}},
			nil,
		},
		{
			"what would replace a module of the kernel's, and who was built against it",
			[]*candidate{testBuild("b", nil, mod("ib_core", crcs{"nowhere": 9}, crcs{"ib_reg": 77}), mod("user", crcs{"ib_reg": 77}, nil), good())},
			map[string][]string{"b": {
				"ib_core.ko: module ib_core" + noOne,
				"user.ko: module user.ko needs the symbol ib_reg of the module ib_core, which is left out",
			}},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := testBatch(tt.candidates...)
			s.judge()
			left := map[string][]string{}
			for _, m := range s.candidates {
				s.record(m)
				for _, l := range m.build.Left {
					left[m.build.Module] = append(left[m.build.Module], l.File+": "+l.Reason)
				}
				if want := tt.failed[m.build.Module]; want != "" {
					assert.ErrorContains(t, m.err, want)
					continue
				}
				assert.NilError(t, m.err, m.build.Module)
				assert.Equal(t, len(m.build.Modules)+len(m.build.Left), len(m.modules))
				assert.Equal(t, len(m.remaining()), len(m.build.Modules))
			}
			if tt.left == nil {
				tt.left = map[string][]string{}
			}
			assert.DeepEqual(t, left, tt.left)
		})
	}
}

func TestRelationsAndRecord(t *testing.T) {
	t.Parallel()
	a := testCandidate("a", nil, nil, crcs{"a1": 5})
	b := testCandidate("b", []string{"a/1"}, crcs{"a1": 5}, crcs{"b1": 6})
	c := testCandidate("ib_core", []string{"b/1"}, crcs{"a1": 5, "b1": 6, "_printk": 1}, nil)
	for _, m := range []*candidate{a, b, c} {
		m.spec.Module, m.spec.SourceVersion, m.spec.Kernel, m.spec.KernelVersion = m.build.Module, "1-2", "6.1.0-56-amd64", "6.1.192-2"
	}
	s := testBatch(a, b, c)
	s.judge()
	assert.DeepEqual(t, s.relations(c), []string{"b-modules-6.1.0-56-amd64 (= 1-2+6.1.192.2)"}) // that one depends on a
	s.record(c)
	assert.DeepEqual(t, c.build.Modules, []state.Module{{
		File: "ib_core.ko", Vermagic: strings.TrimSpace(vermagic), License: "GPL", Symbols: 3, CRCs: 3,
		CRCCheck: "compared", Replaces: "drivers/infiniband/core/ib_core",
	}})
	s.facts.Modversions = false
	s.judge()
	s.record(c)
	assert.Equal(t, c.build.Modules[0].CRCCheck, "kernel has none")
	assert.Equal(t, c.build.Modules[0].CRCs, 0)
}

func TestInfer(t *testing.T) {
	t.Parallel()
	a, b := testCandidate("a_x", nil, nil, crcs{"a1": 5}), testCandidate("b", nil, crcs{"a1": 5}, nil)
	b.modules[0].Depends = []string{"usbcore", "a-x", "b"}
	s := testBatch(a, b)
	s.infer()
	assert.DeepEqual(t, b.build.Depends, []string{"a_x/1"})
	assert.Equal(t, len(a.build.Depends), 0)
	s.judge()
	assert.NilError(t, b.err)
}
