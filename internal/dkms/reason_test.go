package dkms

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"gotest.tools/v3/assert"
)

// What dkms prints around a build that fails.
const (
	head30 = "DKMS make.log for openrazer-driver-3.5.1 for kernel 6.1.0-56-amd64 (x86_64)\nSun Nov 22 10:00:00 UTC 2026\n"
	tail30 = "make[1]: *** [/usr/src/linux-headers-6.1.0-56-common/Makefile:2050: /var/lib/dkms/a/1/build] Error 2\n" +
		"make[1]: Leaving directory '/usr/src/linux-headers-6.1.0-56-amd64'\nmake: *** [Makefile:12: modules] Error 2\n"
	out30 = "Creating symlink /var/lib/dkms/a/1/source -> /usr/src/a-1\n\nKernel preparation unnecessary for this kernel. Skipping...\n" +
		"\nBuilding module:\nCleaning build area...\nmake -j2 KERNELRELEASE=6.1.0-56-amd64 all...(bad exit status: 2)\n" +
		"Error! Bad return status for module build on kernel: 6.1.0-56-amd64 (x86_64)\nConsult /var/lib/dkms/a/1/build/make.log for more information.\n"
	head32 = "DKMS (dkms-3.2.2) make.log for a/1 for kernel 6.12.117+deb13-amd64 (x86_64)\nSun Nov 22 10:00:00 UTC 2026\n\nBuilding module(s)\n" +
		"# command: make -j2 KERNELRELEASE=6.12.117+deb13-amd64 all || echo error: no\n"
	tail32 = "make: *** [Makefile:12: all] Error 2\n\n# exit code: 2\n# elapsed time: 00:00:03\n----------------------------------------------------------------\n"
	out32  = "Building module(s)...(bad exit status: 2)\nFailed command:\nmake -j2 KERNELRELEASE=6.12.117+deb13-amd64 all\n\n" +
		"Error! Bad return status for module build on kernel: 6.12.117+deb13-amd64 (x86_64)\nConsult /var/lib/dkms/a/1/build/make.log for more information.\n"
	out22 = "\nKernel preparation unnecessary for this kernel.  Skipping...\n\nBuilding module:\ncleaning build area....\n" +
		"make KERNELRELEASE=3.13.0-24-generic -C /lib/modules/3.13.0-24-generic/build M=/var/lib/dkms/a/1/build....(bad exit status: 2)\n" +
		"ERROR (dkms apport): kernel package linux-headers-3.13.0-24-generic is not supported\n" +
		"Error! Bad return status for module build on kernel: 3.13.0-24-generic (x86_64)\nConsult /var/lib/dkms/a/1/build/make.log for more information.\n"
)

func TestReason(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, log, output, want string }{
		{
			"gcc, implicit declaration",
			head30 + "make -C /lib/modules/6.1.0-56-amd64/build M=/var/lib/dkms/a/1/build modules\n" +
				"  CC [M]  /var/lib/dkms/a/1/build/foo.o\n" +
				"/var/lib/dkms/a/1/build/foo.c: In function ‘foo_init’:\n" +
				"/var/lib/dkms/a/1/build/foo.c:10:6: warning: unused variable ‘i’ [-Wunused-variable]\n   10 |  int i;\n      |      ^\n" +
				"/var/lib/dkms/a/1/build/foo.c:12:5: error: implicit declaration of function ‘strlcpy’; did you mean ‘strncpy’? [-Werror=implicit-function-declaration]\n" +
				"   12 |     strlcpy(a, \"error: b\", 1);\n      |     ^~~~~~~\n      |     strncpy\n" +
				"cc1: some warnings being treated as errors\n" +
				"make[2]: *** [/usr/src/linux-headers-6.1.0-56-common/scripts/Makefile.build:255: /var/lib/dkms/a/1/build/foo.o] Error 1\n" + tail30,
			out30,
			"error: implicit declaration of function 'strlcpy'; did you mean 'strncpy'? [-Werror=implicit-function-declaration] (foo.c:12)",
		},
		{
			"gcc, in a header, two errors",
			head32 + "In file included from /var/lib/dkms/a/1/build/sub/foo.c:3:\n" +
				"/var/lib/dkms/a/1/build/sub/./compat.h:7:10: fatal error: linux/stdarg2.h: No such file or directory\n    7 | #include <linux/stdarg2.h>\n" +
				"compilation terminated.\n/var/lib/dkms/a/1/build/bar.c:1:1: error: second\n" + tail32,
			out32,
			"fatal error: linux/stdarg2.h: No such file or directory (sub/compat.h:7)",
		},
		{
			"gcc, in a macro of the kernel", // vpoll-dkms
			head30 + "In file included from /usr/src/linux-headers-6.12.95+deb12-common/include/linux/linkage.h:7,\n                 from /var/lib/dkms/a/1/build/vpoll.c:3:\n" +
				"/var/lib/dkms/a/1/build/vpoll.c: In function ‘vpoll_init’:\n" +
				"/usr/src/linux-headers-6.12.95+deb12-common/include/linux/init.h:180:22: error: passing argument 1 of ‘class_create’ from incompatible pointer type [-Werror=incompatible-pointer-types]\n" +
				"  180 | #define THIS_MODULE (&__this_module)\n      |                     ~^~~~~~~~~~~~~~~\n" +
				"/var/lib/dkms/a/1/build/vpoll.c:112:44: note: in expansion of macro ‘THIS_MODULE’\n  112 |                 vpoll_class = class_create(THIS_MODULE, NAME);\n" +
				"/var/lib/dkms/a/1/build/vpoll.c:112:31: error: too many arguments to function ‘class_create’\n" + tail30,
			out30,
			"error: passing argument 1 of 'class_create' from incompatible pointer type [-Werror=incompatible-pointer-types] (vpoll.c:112)",
		},
		{
			"gcc, in a macro in a macro, paths of 6.13 and later",
			head30 + "include/linux/compiler_types.h:522:45: error: call to ‘__compiletime_assert_1’ declared with attribute error: no\n" +
				"include/linux/compiler_types.h:503:25: note: in definition of macro ‘__compiletime_assert’\n" +
				"include/linux/build_bug.h:39:37: note: in expansion of macro ‘compiletime_assert’\nfoo.c:9:2: note: in expansion of macro ‘BUILD_BUG_ON’\n" + tail30,
			out30,
			"error: call to '__compiletime_assert_1' declared with attribute error: no (foo.c:9)",
		},
		{
			"gcc, in a header of the kernel",
			head30 + "/usr/src/linux-headers-6.12.95+deb12-common/include/linux/foo.h:7:1: error: first\nfoo.c:1:1: error: second\nfoo.c:9:2: note: in expansion of macro ‘A’\n" + tail30,
			out30,
			"error: first (include/linux/foo.h:7)",
		},
		{
			"clang, in colours",
			head32 + "\x1b[1m/var/lib/dkms/a/1/build/foo.c:12:5: \x1b[0m\x1b[0;1;31merror: \x1b[0m\x1b[1mincompatible function pointer types [-Wincompatible-function-pointer-types]\x1b[0m\n1 error generated.\n" + tail32,
			out32,
			"error: incompatible function pointer types [-Wincompatible-function-pointer-types] (foo.c:12)",
		},
		{
			"#error of the module",
			head30 + "/var/lib/dkms/a/1/build/foo.c:3:2: error: #error \"kernel too new\"\n" + tail30, out30,
			`error: #error "kernel too new" (foo.c:3)`,
		},
		{
			"gcc 4 without columns", head30 + "/var/lib/dkms/a/1/build/foo.c:33: error: too few arguments to function `f'\n" + tail30, out22,
			"error: too few arguments to function 'f' (foo.c:33)",
		},
		{
			"an option that gcc does not know",
			head30 + "gcc: error: unrecognized command-line option ‘-fzero-call-used-regs=used-gpr’\n" + tail30, out30,
			"gcc: error: unrecognized command-line option '-fzero-call-used-regs=used-gpr'",
		},
		{
			"option of the compiler proper", head30 + "cc1: error: code model kernel does not support PIC mode\n" + tail30, out30,
			"cc1: error: code model kernel does not support PIC mode",
		},
		{
			"modpost, 5.x and later",
			head30 + "  MODPOST /var/lib/dkms/a/1/build/Module.symvers\n" +
				"WARNING: modpost: missing MODULE_LICENSE() in x.o\n" +
				"ERROR: modpost: \"kallsyms_lookup_name\" [/var/lib/dkms/a/1/build/foo.ko] undefined!\n" +
				"make[2]: *** [/usr/src/linux-headers-6.1.0-56-common/scripts/Makefile.modpost:127: /var/lib/dkms/a/1/build/Module.symvers] Error 1\n" + tail30,
			out30,
			`modpost: "kallsyms_lookup_name" [foo.ko] undefined!`,
		},
		{
			"modpost, 4.x", head30 + "ERROR: \"init_mm\" [/var/lib/dkms/a/1/build/foo.ko] undefined!\n" + tail30, out30,
			`modpost: "init_mm" [foo.ko] undefined!`,
		},
		{
			"modpost, licence",
			head30 + "FATAL: modpost: GPL-incompatible module foo.ko uses GPL-only symbol '__rcu_read_lock'\n" + tail30, out30,
			"modpost: GPL-incompatible module foo.ko uses GPL-only symbol '__rcu_read_lock'",
		},
		{
			"modpost, licence, 6.x",
			head32 + "ERROR: modpost: GPL-incompatible module foo.ko uses GPL-only symbol 'x'\n" + tail32, out32,
			"modpost: GPL-incompatible module foo.ko uses GPL-only symbol 'x'",
		},
		{
			"assembler",
			head30 + "/tmp/ccabcdef.s: Assembler messages:\n/tmp/ccabcdef.s:1234: Error: no such instruction: `endbr65'\n" + tail30, out30,
			"error: no such instruction: 'endbr65'",
		},
		{
			"assembler source", head30 + "/var/lib/dkms/a/1/build/x.S: Assembler messages:\n/var/lib/dkms/a/1/build/x.S:5: Error: junk at end of line\n" + tail30, out30,
			"error: junk at end of line (x.S:5)",
		},
		{
			"linker", head30 + "ld: /var/lib/dkms/a/1/build/a.o: in function `f':\nld: a.c:(.text+0x5): undefined reference to `g'\n" + tail30, out30,
			"ld: a.c:(.text+0x5): undefined reference to 'g'",
		},
		{"lld", head30 + "ld.lld: error: undefined symbol: g\n>>> referenced by a.c\n" + tail30, out30, "ld.lld: error: undefined symbol: g"},
		{
			"no such object", head30 + "ld: cannot find /var/lib/dkms/a/1/build/blob.o: No such file or directory\n" + tail30, out30,
			"ld: cannot find blob.o: No such file or directory",
		},
		{
			"objtool", head32 + "/var/lib/dkms/a/1/build/foo.o: error: objtool: f+0x10: unreachable instruction\n" + tail32, out32,
			"foo.o: error: objtool: f+0x10: unreachable instruction",
		},
		{
			"objtool only warns",
			head30 + "/var/lib/dkms/a/1/build/nv.o: warning: objtool: f()+0x10: missing error: prefix\n/var/lib/dkms/a/1/build/b.c:5:1: error: expected ‘;’\n" + tail30,
			out30,
			"error: expected ';' (b.c:5)",
		},
		{
			"configure of zfs in PRE_BUILD: on stderr only, and on the lines below",
			head30 + "make: *** No targets specified and no makefile found.  Stop.\n",
			"Running the pre_build script:\nchecking for gcc... gcc\nchecking whether modules can be built... no\n" +
				"configure: error:\n\t*** Unable to build an empty module.\n\t*** More.\nbad exit status: 1\n" + out30,
			"configure: error: Unable to build an empty module.",
		},
		{
			"configure", "", "checking kernel source version... Not found\nconfigure: error: no acceptable C compiler found in $PATH\n" + out30,
			"configure: error: no acceptable C compiler found in $PATH",
		},
		{
			"PRE_BUILD without a word", "make: *** No targets specified and no makefile found.  Stop.\n", out30,
			"No targets specified and no makefile found",
		},
		{
			"python",
			head30 + "Traceback (most recent call last):\n  File \"/var/lib/dkms/a/1/build/gen.py\", line 3, in <module>\n    import yaml\n" +
				"ModuleNotFoundError: No module named 'yaml'\nmake: *** [Makefile:3: gen.h] Error 1\n",
			out30,
			"ModuleNotFoundError: No module named 'yaml'",
		},
		{"perl", head30 + "Can't locate Text/Template.pm in @INC (you may need to install it) (@INC contains: /etc/perl) at x.pl line 2.\n" + tail30, out30, "perl: cannot find Text/Template.pm"},
		{
			"compiler killed",
			head30 + "/var/lib/dkms/a/1/build/b.c:5:1: error: first\ngcc: fatal error: Killed signal terminated program cc1\ncompilation terminated.\n" + tail30, out30,
			"gcc: fatal error: Killed signal terminated program cc1",
		},
		{"compiler killed, gcc 6", head30 + "gcc: internal compiler error: Killed (program cc1)\n" + tail30, out30, "gcc: internal compiler error: Killed (program cc1)"},
		{"out of memory", head30 + "cc1: out of memory allocating 65536 bytes after a total of 1 bytes\n" + tail30, out30, "cc1: out of memory allocating 65536 bytes after a total of 1 bytes"},
		{"killed by the kernel", head30 + "make[2]: *** [scripts/Makefile.build:255: /var/lib/dkms/a/1/build/foo.o] Killed\n" + tail30, out30, "make: scripts/Makefile.build:255: foo.o: killed"},
		{
			"disk full",
			head30 + "/var/lib/dkms/a/1/build/foo.c:1:1: fatal error: error writing to /tmp/ccX.s: No space left on device\n" + tail30, out30,
			"foo.c:1:1: fatal error: error writing to /tmp/ccX.s: No space left on device",
		},
		{"disk full for the shell", "", "cp: error writing '/var/lib/dkms/a/1/build/x': No space left on device\n" + out30, "cp: error writing 'x': No space left on device"},
		{
			"command that is missing, and matters",
			head30 + "/bin/sh: 1: flex: not found\nmake[2]: *** [scripts/Makefile:9: x.c] Error 127\nmake: *** No rule to make target 'y'.  Stop.\n", out30,
			"command not found: flex",
		},
		{
			"command that is missing, and does not matter",
			head30 + "/bin/sh: 1: pahole: not found\n/var/lib/dkms/a/1/build/b.c:5:1: error: first\n" + tail30, out30,
			"error: first (b.c:5)",
		},
		{"command that is missing, bash", head30 + "/bin/bash: line 1: bc: command not found\n" + tail30, out30, "command not found: bc"},
		{"compiler that is missing", head30 + "make[1]: gcc-12: No such file or directory\nmake[1]: *** [x] Error 127\n", out30, "command not found: gcc-12"},
		{"compiler that is missing, old make", head30 + "make[1]: gcc-12: Command not found\nmake[1]: *** [x] Error 127\n", out30, "command not found: gcc-12"},
		{
			"no rule", head30 + "make[2]: *** No rule to make target '/var/lib/dkms/a/1/build/foo.o', needed by '/var/lib/dkms/a/1/build/bar.o'.  Stop.\n" + tail30, out30,
			"No rule to make target 'foo.o', needed by 'bar.o'",
		},
		{"no headers in make", head30 + "make: *** /lib/modules/6.1.0-56-amd64/build: No such file or directory.  Stop.\n", out30, "/lib/modules/6.1.0-56-amd64/build: No such file or directory"},
		{"makefile", head30 + "Makefile:3: *** Kernel 6.1 is too old.  Stop.\n", out30, "Kernel 6.1 is too old (Makefile:3)"},
		{"makefile in the build directory", head30 + "/var/lib/dkms/a/1/build/Kbuild:9: *** missing separator.  Stop.\n" + tail30, out30, "missing separator (Kbuild:9)"},
		{
			"kernel configuration", head30 + "\n  ERROR: Kernel configuration is invalid.\n         include/generated/autoconf.h or include/config/auto.conf are missing.\n" + tail30, out30,
			"ERROR: Kernel configuration is invalid.",
		},
		{
			"a command that make echoes is no error",
			head30 + "test -e include/generated/autoconf.h || ( echo >&2 \"  ERROR: Kernel configuration is invalid.\"; false )\n/var/lib/dkms/a/1/build/b.c:5:1: error: first\n" + tail30, out30,
			"error: first (b.c:5)",
		},
		{
			"patch", head32 + "patching file foo.c\nHunk #1 FAILED at 12.\n1 out of 1 hunk FAILED\n",
			"Applying patch fix.diff...(bad exit status: 1)\n\nError! Application of patch fix.diff failed.\nConsult /var/lib/dkms/a/1/build/make.log for more information.\n",
			"Application of patch fix.diff failed",
		},
		{
			"headers missing, 3.x", "",
			"\nError! Your kernel headers for kernel 6.1.0-1-amd64 cannot be found at /lib/modules/6.1.0-1-amd64/build or /lib/modules/6.1.0-1-amd64/source.\n" +
				"Please install the linux-headers-6.1.0-1-amd64 package or use the --kernelsourcedir option to tell DKMS where it's located.\n",
			"Your kernel headers for kernel 6.1.0-1-amd64 cannot be found at /lib/modules/6.1.0-1-amd64/build or /lib/modules/6.1.0-1-amd64/source",
		},
		{
			"headers missing, 2.2", "",
			"Error! echo\nYour kernel headers for kernel 3.13.0-1-generic cannot be found at\n/lib/modules/3.13.0-1-generic/build or /lib/modules/3.13.0-1-generic/source.\n",
			"Your kernel headers for kernel 3.13.0-1-generic cannot be found at /lib/modules/3.13.0-1-generic/build or /lib/modules/3.13.0-1-generic/source",
		},
		{
			"BUILD_DEPENDS", "",
			"\nError! Aborting build of module lustre/2.15 for kernel 6.12.117+deb13-amd64 (x86_64) due to missing BUILD_DEPENDS: zfs.\nYou may override by specifying --force.\n",
			"Aborting build of module lustre/2.15 for kernel 6.12.117+deb13-amd64 (x86_64) due to missing BUILD_DEPENDS: zfs",
		},
		{
			"module not there in the end", head30 + "make: Nothing to be done for 'all'.\n",
			"\nError! Build of foo.ko failed for: 6.1.0-56-amd64 (x86_64)\nMake sure the name of the generated module is correct and at the root of the\n" +
				"build directory, or consult make.log in the build directory\n/var/lib/dkms/a/1/build for more information.\n",
			"Build of foo.ko failed for: 6.1.0-56-amd64 (x86_64)",
		},
		{"dkms.conf", "", "\nError! Bad conf file.\nFile: /usr/src/a-1/dkms.conf does not represent a valid dkms.conf file.\n", "Bad conf file. File: /usr/src/a-1/dkms.conf does not represent a valid dkms.conf file"},
		{"dkms.conf, details", "", "dkms.conf: Error! No 'DEST_MODULE_LOCATION' directive specified for record #0.\n\nError! Bad conf file.\nFile: x\n", "Bad conf file. File: x"},
		{"make alone", head30 + "make: *** [Makefile:12: all] Error 2\n", out30, "make: Makefile:12: all: error 2"},
		{"other words", "", "something went wrong\n", "something went wrong"},
		{"nothing", "", "", "no reason given"},
		{"blanks", " \n\t\n", "\x1b[0m\r\n", "no reason given"},
		{"progress over carriage returns", "", "10%\r20%\rfoo.c:1:1: error: x\r\n", "error: x (foo.c:1)"},
		{"not UTF-8", "foo.c:1:1: error: a\xff\x00\x07b\n", "", "error: ab (foo.c:1)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, Reason(tt.log, tt.output), tt.want)
		})
	}
}

func TestReasonOfLongLogs(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	for i := range 400_000 {
		fmt.Fprintf(&log, "  CC [M]  /var/lib/dkms/a/1/build/drivers/some/where/file_%d.o\n", i)
	}
	log.WriteString("a.c:1:1: error: " + strings.Repeat("ä", 1_000_000) + "\n")
	start := time.Now()
	got := Reason(log.String(), "")
	assert.Equal(t, utf8.RuneCountInString(got), maxReason)
	assert.Assert(t, time.Since(start) < 20*time.Second, "%d bytes took %v", log.Len(), time.Since(start))
}

func TestSkipped(t *testing.T) {
	t.Parallel()
	const reason = "BUILD_EXCLUSIVE in its dkms.conf does not match this kernel, architecture or configuration"
	old := "\nError! The dkms.conf for this module includes a BUILD_EXCLUSIVE directive which\ndoes not match this kernel/arch.  This indicates that it should not be built.\n"
	tests := []struct {
		name   string
		code   int
		output string
		want   bool
	}{
		{"3.0.11", 77, "\nError! The /var/lib/dkms/a/1/6.1.0/x86_64/dkms.conf for module a includes a BUILD_EXCLUSIVE directive which does not match this kernel/arch/config.\nThis indicates that it should not be built.\n", true},
		{"3.2", 77, "Warning: The /var/lib/dkms/a/1/6.12.0/x86_64/dkms.conf\nfor module a/1 includes a BUILD_EXCLUSIVE directive\nwhich does not match this kernel/arch/config.\nThis indicates that it should not be built.\n", true},
		{"77 says it alone", 77, "", true},
		{"2.8", 9, old, true},
		{"9 for something else", 9, "Error! Missing write permissions for /x.\n", false},
		{"built", 0, "BUILD_EXCLUSIVE", false},
		{"failed", 10, old, false},
	}
	for _, tt := range tests {
		got, ok := Skipped(tt.code, tt.output)
		assert.Equal(t, ok, tt.want, tt.name)
		if ok {
			assert.Equal(t, got, reason)
		} else {
			assert.Equal(t, got, "")
		}
	}
}

func FuzzReason(f *testing.F) {
	f.Add(head30+"/var/lib/dkms/a/1/build/foo.c:12:5: error: implicit declaration\n"+tail30, out30)
	f.Add(head32+"ERROR: modpost: \"x\" [/var/lib/dkms/a/1/build/foo.ko] undefined!\n"+tail32, out32)
	f.Add("configure: error:\n", "Traceback (most recent call last):\n")
	f.Add("Error! echo\nError! \n\nError!", "\x1b[1mmake: *** x\r\n")
	f.Fuzz(func(t *testing.T, log, output string) {
		got := Reason(log, output)
		assert.Assert(t, got != "" && utf8.ValidString(got) && utf8.RuneCountInString(got) <= maxReason, got)
		for _, r := range got {
			assert.Assert(t, unicode.IsPrint(r), "%q", got)
		}
		Skipped(9, output)
	})
}

// TestReasonWithoutAka is librem-ec-acpi-dkms, and what vpoll-dkms says in the end, on 6.12.
func TestReasonWithoutAka(t *testing.T) {
	t.Parallel()
	const long = "initialization of ‘int (*)(struct power_supply *, struct acpi_battery_hook *)’ from incompatible pointer type ‘int (*)(struct power_supply *)’ [-Werror=incompatible-pointer-types]"
	assert.Equal(t, Reason("/var/lib/dkms/a/1/build/librem_ec_acpi.c:276:24: error: "+long+"\n", ""),
		"error: initialization of 'int (*)(struct power_supply *, struct acpi_battery_hook *)' from incompatible pointer type 'int (*)(struct power_supply *)' (librem_ec_acpi.c:276)")
	const aka = "assignment to ‘char * (*)(const struct device *, umode_t *)’ {aka ‘char * (*)(const struct device *, short unsigned int *)’} from incompatible pointer type ‘char * (*)(struct device *, umode_t *)’ {aka ‘char * (*)(struct device *, short unsigned int *)’}"
	assert.Equal(t, Reason("vpoll.c:117:38: error: "+aka+" [-Werror=incompatible-pointer-types]\n", ""),
		"error: assignment to 'char * (*)(const struct device *, umode_t *)' from incompatible pointer type 'char * (*)(struct device *, umode_t *)' (vpoll.c:117)")
}

// TestReasonKeepsThePlace is for messages longer than a reason may be.
func TestReasonKeepsThePlace(t *testing.T) {
	t.Parallel()
	got := Reason("/var/lib/dkms/x/1/build/x.c:276:24: error: "+strings.Repeat("very long ", 40)+"\n", "")
	assert.Assert(t, strings.HasSuffix(got, "… (x.c:276)"), got)
	assert.Assert(t, utf8.RuneCountInString(got) <= maxReason)
}
