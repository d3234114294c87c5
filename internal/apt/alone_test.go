package apt

import (
	"dkms2bin/internal/deb"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

const statusOfTests = `Package: dpkg
Status: install ok installed
Architecture: amd64
Version: 1.21.22

Package: dkms
Status: install ok installed
Architecture: all
Version: 3.0.10-8+deb12u1
Provides: builder (= 2:1.0), anything
Breaks: old-dkms (<< 2)

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
`

func TestTakes(t *testing.T) {
	t.Parallel()
	const half = "\nPackage: half\nStatus: install ok half-configured\nArchitecture: all\nVersion: 1\n"
	const foreign = "\nPackage: other\nStatus: install ok installed\nArchitecture: i386\nVersion: 1\n"
	for _, row := range []struct {
		name, more, control string
		want                bool
	}{
		{"nothing needed", "", "", true},
		{"there", "", "Depends: dkms, dpkg\n", true},
		{"new enough", "", "Pre-Depends: dpkg (>= 1.21)\nDepends: dkms (>= 3.0.10-8), dkms (<< 3.1) , dkms (>> 1),dkms (<= 4), dpkg (= 1.21.22)\n", true},
		{"too old", "", "Depends: dkms (>= 3.1)\n", false},
		{"too old for a script", "", "Pre-Depends: dpkg (>= 1.22)\n", false},
		{"not older", "", "Depends: dkms (<< 3.0.10-8+deb12u1)\n", false},
		{"another version", "", "Depends: dpkg (= 1.21)\n", false},
		{"missing", "", "Depends: dkms, nothing-has-this\n", false},
		{"one of two", "", "Depends: nothing-has-this | dkms (>= 2)\n", true},
		{"none of two", "", "Depends: nothing-has-this | dkms (>= 4)\n", false},
		{"provided", "", "Depends: anything, builder, builder (>= 2:0.9)\n", true},
		{"provided, too old", "", "Depends: builder (>= 2:1.1)\n", false},
		{"provided without a version", "", "Depends: anything (>= 0)\n", false},
		{"of any architecture", "", "Depends: dkms:any (>= 2)\n", true},
		{"of another architecture", "", "Depends: dkms:i386\n", false},
		{"for some architectures", "", "Depends: dkms [amd64]\n", false},
		{"removed", "", "Depends: gone\n", false},
		{"conflicts", "", "Conflicts: dkms (<< 1)\n", false},
		{"conflicts with what is provided", "", "Conflicts: anything\n", false},
		{"breaks", "", "Breaks: dpkg\n", false},
		{"conflicts with nothing", "", "Conflicts: new-dkms, gone, nothing-has-this\nBreaks: x\nProvides: new\n", true},
		{"half installed", half, "", false},
		{"several architectures", foreign, "", false},
	} {
		all, err := parseInstalled(strings.NewReader(statusOfTests + row.more))
		assert.NilError(t, err)
		control, err := deb.ParseStanza([]byte("Package: new-dkms\nVersion: 1\n" + row.control))
		assert.NilError(t, err)
		assert.Equal(t, all.takes(control), row.want, row.name)
	}
	all, err := parseInstalled(strings.NewReader(statusOfTests))
	assert.NilError(t, err)
	for _, row := range []struct {
		name, first, second string
		want                bool
	}{
		{"nothing of each other", "", "", true},
		{"one needs the other", "Depends: two (= 1), dkms\n", "", true},
		{"each needs the other", "Depends: two\n", "Depends: one (>= 1)\n", true},
		{"one needs what the other provides", "Depends: virtual (>= 2)\n", "Provides: virtual (= 2)\n", true},
		{"one needs another version", "Depends: two (>= 2)\n", "", false},
		{"one is unpacked after the other is set up", "Pre-Depends: two\n", "", false},
		{"one conflicts with the other", "Conflicts: two (<< 1)\n", "", false},
		{"one breaks what the other provides", "Breaks: virtual\n", "Provides: virtual\n", false},
		{"one conflicts with what it provides", "Provides: virtual\nConflicts: virtual\n", "", true},
		{"one of them is not wanted", "", "Provides: old-dkms\n", false},
	} {
		one, err := deb.ParseStanza([]byte("Package: one\nVersion: 1\n" + row.first))
		assert.NilError(t, err)
		two, err := deb.ParseStanza([]byte("Package: two\nVersion: 1\n" + row.second))
		assert.NilError(t, err)
		assert.Equal(t, all.takes(one, two), row.want, row.name)
		assert.Equal(t, all.takes(two, one), row.want, row.name)
	}
	for control, why := range map[string]string{
		"Package: dkms\nVersion: 9\n":                         "installed",
		"Package: old-dkms\nVersion: 9\n":                     "broken by dkms",
		"Package: new-dkms\nVersion: 1\nProvides: old-dkms\n": "provides what dkms breaks",
	} {
		s, err := deb.ParseStanza([]byte(control))
		assert.NilError(t, err)
		assert.Assert(t, !all.takes(s), why)
	}
}
