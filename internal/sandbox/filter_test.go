package sandbox

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// buildAttempts compiles the program that tries ways out.
func buildAttempts(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "attempts")
	out, err := exec.Command("gcc", "-static", "-O1", "-w", "-o", program, "testdata/attempts.c").CombinedOutput()
	assert.NilError(t, err, "%s", out)
	content, err := os.ReadFile(program)
	assert.NilError(t, err)
	return content
}

// outcomes reads what that program prints.
func outcomes(out string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if name, outcome, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			found[name] = outcome
		}
	}
	return found
}

// TestFilter: what neither namespaces nor missing capabilities stop, in all
// sandboxes, and what has to go on working beside it.
func TestFilter(t *testing.T) {
	t.Parallel()
	rows := []struct{ name, want string }{
		{"keyctl", "EPERM"},
		{"add_key", "EPERM"},
		{"request_key", "EPERM"},
		{"bpf", "EPERM"},
		{"perf", "EPERM"},
		{"userfaultfd", "EPERM"},
		{"io_uring", "EPERM"},
		{"handle", "EPERM"},
		{"kernel_log", "EPERM"},
		{"unshare_user", "ENOSPC"},
		{"clone_user", "ENOSPC"},
		{"clone3_user", "ENOSPC"},
		{"vsock", "EAFNOSUPPORT"},
		{"family", "EAFNOSUPPORT"},
		{"crypto", "EAFNOSUPPORT"},
		{"packet_socket", "EAFNOSUPPORT"},
		{"protocol", "ESOCKTNOSUPPORT"},
		{"type", "ESOCKTNOSUPPORT"},
		{"netlink", "EPROTONOSUPPORT"},
		{"line_discipline", "EPERM"},
		{"works_inet", "done"},
		{"works_inet6", "done"},
		{"works_unix", "done"},
		{"works_pair", "done"},
		{"works_route", "done"},
		{"works_terminal", "done"},
		{"works_null", "done"},
	}
	if runtime.GOARCH == "amd64" {
		rows = append(rows, []struct{ name, want string }{
			{"i386_getpid", "done"},
			{"i386_inet", "done"},
			{"i386_keyctl", "EPERM"},
			{"i386_bpf", "EPERM"},
			{"i386_syslog", "EPERM"},
			{"i386_vsock", "EAFNOSUPPORT"},
			{"i386_socketcall", "ENOSYS"},
			{"i386_unshare_user", "ENOSPC"},
			{"x32_getpid", "ENOSYS"},
			{"x32_keyctl", "ENOSYS"},
			{"x32_socket", "ENOSYS"},
		}...)
	}
	program := string(buildAttempts(t))
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = row.name
	}
	b := newBox(t)
	write(t, filepath.Join(b.base(), "bin/attempts"), program, 0o755)
	beside := filepath.Join(t.TempDir(), "attempts")
	write(t, beside, program, 0o755)
	host := b.host("")
	host.Binds = []Bind{{Source: beside, Target: "/tmp/attempts"}}
	realRoot := host
	realRoot.RealRoot = true
	specs := map[string]Spec{"writable": b.spec("attempts"), "read-only": readOnly(b.spec("attempts")), "host": host, "real root": realRoot}
	for name, spec := range specs {
		t.Run(name, func(t *testing.T) {
			if spec.Root.Host {
				spec.Args[0] = "/tmp/attempts"
				spec.Args = spec.Args[:1]
			}
			spec.Args = append(spec.Args, names...)
			out, err := output(t.Context(), spec)
			assert.NilError(t, err, "%s", out)
			got := outcomes(out)
			for _, row := range rows {
				if spec.RealRoot && strings.HasSuffix(row.name, "_user") {
					continue
				}
				assert.Check(t, got[row.name] == row.want, "%s: %s, want %s", row.name, got[row.name], row.want)
			}
		})
	}

	// What the host itself refuses says nothing about the sandbox.
	out, err := exec.Command(beside, names...).Output()
	assert.NilError(t, err)
	open := 0
	for name, outcome := range outcomes(string(out)) {
		if outcome == "done" && !strings.HasPrefix(name, "works_") {
			open++
		} else {
			t.Logf("outside of the sandbox: %s: %s", name, outcome)
		}
	}
	assert.Assert(t, open >= 10, "the host itself allows no more than %d", open)
}

// TestFilterNumbers compares the numbers of 32-bit calls with those of x/sys.
func TestFilterNumbers(t *testing.T) {
	t.Parallel()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	assert.NilError(t, err)
	names := []string{
		"ADD_KEY", "REQUEST_KEY", "KEYCTL", "BPF", "PERF_EVENT_OPEN", "USERFAULTFD", "SYSLOG",
		"IO_URING_SETUP", "IO_URING_ENTER", "IO_URING_REGISTER", "OPEN_BY_HANDLE_AT", "SOCKET", "SOCKETPAIR", "IOCTL",
	}
	for arch, other := range map[string]string{"amd64": "386", "arm64": "arm"} {
		source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix/zsysnum_linux_"+other+".go"))
		assert.NilError(t, err)
		numbers := map[string]uint32{}
		for line := range strings.Lines(string(source)) {
			var name string
			var number uint32
			if n, _ := fmt.Sscanf(strings.TrimSpace(line), "SYS_%s = %d", &name, &number); n == 2 {
				numbers[name] = number
			}
		}
		c := compat[arch]
		got := append(append([]uint32{}, c.denied...), c.socket, c.socketpair, c.ioctl)
		var want []uint32
		for _, name := range names {
			want = append(want, numbers[name])
		}
		assert.DeepEqual(t, got, want)
		assert.Equal(t, c.socketcall, numbers["SOCKETCALL"])
		assert.Equal(t, len(native.denied), len(c.denied))
	}
}

// TestFilterProgram runs the filters of other architectures by hand.
func TestFilterProgram(t *testing.T) {
	t.Parallel()
	arm64 := native
	arm64.audit = unix.AUDIT_ARCH_AARCH64
	filter := filterOf([]calls{arm64, compat["arm64"]})
	for _, tt := range []struct {
		name     string
		arch, nr uint32
		args     [3]uint32
		want     uint32
	}{
		{"native", unix.AUDIT_ARCH_AARCH64, native.denied[0], [3]uint32{}, errno(unix.EPERM)},
		{"native, harmless", unix.AUDIT_ARCH_AARCH64, unix.SYS_GETPID, [3]uint32{}, unix.SECCOMP_RET_ALLOW},
		{"with the bit of x32", unix.AUDIT_ARCH_AARCH64, x32Bit | native.denied[0], [3]uint32{}, unix.SECCOMP_RET_ALLOW},
		{"last of the compatible", unix.AUDIT_ARCH_ARM, 371, [3]uint32{}, errno(unix.EPERM)},
		{"compatible socket", unix.AUDIT_ARCH_ARM, 281, [3]uint32{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, unix.IPPROTO_UDP}, unix.SECCOMP_RET_ALLOW},
		{"compatible socketpair", unix.AUDIT_ARCH_ARM, 288, [3]uint32{unix.AF_TIPC}, errno(unix.EAFNOSUPPORT)},
		{"compatible ioctl", unix.AUDIT_ARCH_ARM, 54, [3]uint32{0, unix.TIOCSETD}, errno(unix.EPERM)},
		{"compatible, harmless", unix.AUDIT_ARCH_ARM, 20, [3]uint32{}, unix.SECCOMP_RET_ALLOW},
		{"another architecture", unix.AUDIT_ARCH_RISCV64, 172, [3]uint32{}, errno(unix.ENOSYS)},
	} {
		assert.Equal(t, simulate(t, filter, tt.arch, tt.nr, tt.args), tt.want, tt.name)
	}
}

func simulate(t *testing.T, filter []unix.SockFilter, arch, nr uint32, args [3]uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.NativeEndian.PutUint32(data[offsetNumber:], nr)
	binary.NativeEndian.PutUint32(data[offsetArch:], arch)
	for i, a := range args {
		binary.NativeEndian.PutUint64(data[16+8*i:], uint64(a))
	}
	var value uint32
	for pc := 0; pc < len(filter); pc++ {
		ins := filter[pc]
		jump := func(holds bool) {
			if holds {
				pc += int(ins.Jt)
			} else {
				pc += int(ins.Jf)
			}
		}
		switch ins.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			value = binary.NativeEndian.Uint32(data[ins.K:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			value &= ins.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(value == ins.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(value >= ins.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(value > ins.K)
		case unix.BPF_RET | unix.BPF_K:
			return ins.K
		default:
			t.Fatalf("instruction %d: unknown code %#x", pc, ins.Code)
		}
	}
	t.Fatal("the filter does not end")
	return 0
}
