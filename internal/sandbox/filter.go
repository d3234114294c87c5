package sandbox

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter of system calls, seccomp(2), stops what neither namespaces nor
// missing capabilities do. Everything else that could reach the host (mounts,
// module loading, clocks, raw I/O, other processes, nested user namespaces) is
// refused without it and therefore not here.

// calls are the numbers of the system calls that the filter looks at, for one
// architecture. A number that an architecture does not have is 0 there.
type calls struct {
	audit  uint32   // the architecture's name for seccomp
	denied []uint32 // EPERM
	socket, socketpair,
	ioctl, socketcall uint32
}

// native are the calls of the architecture that the programs are made for. Those
// of init_module(2) and the like are missing with purpose.
var native = calls{
	audit: audits[runtime.GOARCH],
	denied: []uint32{
		// Keys are found by possession, whatever the namespace.
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
		// Whether these ask for a capability is a setting of the host, and each
		// has been a way into the kernel.
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		// The host's kernel log, where kernel.dmesg_restrict is off.
		unix.SYS_SYSLOG,
		// What is done by way of a ring is seen by no filter.
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		// CAP_DAC_READ_SEARCH, which dpkg and tar use, is what it asks for.
		unix.SYS_OPEN_BY_HANDLE_AT,
	},
	socket: unix.SYS_SOCKET, socketpair: unix.SYS_SOCKETPAIR, ioctl: unix.SYS_IOCTL,
}

// compat are the calls of 32-bit programs on a 64-bit kernel, by the name that Go
// has for the kernel's own architecture. On others they do not exist or all fail.
// socketcall(2) has its arguments in memory, where no filter sees them: programs
// that know nothing better have no sockets.
var compat = map[string]calls{
	"amd64": {
		audit:  unix.AUDIT_ARCH_I386,
		denied: []uint32{286, 287, 288, 357, 336, 374, 103, 425, 426, 427, 342},
		socket: 359, socketpair: 360, ioctl: 54, socketcall: 102,
	},
	"arm64": {
		audit:  unix.AUDIT_ARCH_ARM,
		denied: []uint32{309, 310, 311, 386, 364, 388, 103, 425, 426, 427, 371},
		socket: 281, socketpair: 288, ioctl: 54,
	},
}

var audits = map[string]uint32{
	"386": unix.AUDIT_ARCH_I386, "amd64": unix.AUDIT_ARCH_X86_64, "arm": unix.AUDIT_ARCH_ARM, "arm64": unix.AUDIT_ARCH_AARCH64,
	"loong64": unix.AUDIT_ARCH_LOONGARCH64, "mips64le": unix.AUDIT_ARCH_MIPSEL64, "mipsle": unix.AUDIT_ARCH_MIPSEL,
	"ppc64le": unix.AUDIT_ARCH_PPC64LE, "riscv64": unix.AUDIT_ARCH_RISCV64, "s390x": unix.AUDIT_ARCH_S390X,
}

// x32Bit is set in the numbers of x32, which shares amd64's name.
const x32Bit = 0x40000000

// filterCalls puts the filter on this thread and on what it starts. It needs
// no_new_privs or CAP_SYS_ADMIN.
func filterCalls() error {
	if native.audit == 0 {
		return fmt.Errorf("cannot filter system calls: nothing is known of those of %s", runtime.GOARCH)
	}
	arches := []calls{native}
	if c, ok := compat[runtime.GOARCH]; ok {
		arches = append(arches, c)
	}
	filter := filterOf(arches)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("cannot filter system calls: %w", err)
	}
	return nil
}

// filterOf is the program for these architectures, in the machine language of
// bpf(4): each has a part of its own, and calls of another one do not exist.
func filterOf(arches []calls) []unix.SockFilter {
	var p program
	for _, c := range arches {
		p.load(offsetArch)
		next := p.jump(unix.BPF_JEQ, c.audit, ifNot)
		p.load(offsetNumber)
		if c.audit == unix.AUDIT_ARCH_X86_64 {
			p.when(unix.BPF_JGE, x32Bit, errno(unix.ENOSYS))
		}
		for _, nr := range c.denied {
			p.when(unix.BPF_JEQ, nr, errno(unix.EPERM))
		}
		if c.socketcall != 0 {
			p.when(unix.BPF_JEQ, c.socketcall, errno(unix.ENOSYS))
		}
		toSocket := p.jump(unix.BPF_JEQ, c.socket, ifSo)
		toSocketpair := p.jump(unix.BPF_JEQ, c.socketpair, ifSo)
		other := p.jump(unix.BPF_JEQ, c.ioctl, ifNot)
		// A line discipline that nobody uses yet is a module that gets loaded.
		p.load(argument(1))
		p.when(unix.BPF_JEQ, unix.TIOCSETD, errno(unix.EPERM))
		p.here(other)
		p.ret(unix.SECCOMP_RET_ALLOW)
		p.here(toSocket, toSocketpair)
		p.sockets()
		p.here(next)
	}
	p.ret(errno(unix.ENOSYS))
	return p
}

// sockets decides about socket(2) and socketpair(2). Families such as AF_VSOCK
// know no network namespaces, and an unusual family, type or protocol loads the
// host's module for it. What is left is local sockets, TCP, UDP and ICMP, and the
// question for addresses and routes that libc asks.
func (p *program) sockets() {
	p.load(argument(0))
	p.when(unix.BPF_JEQ, unix.AF_UNIX, unix.SECCOMP_RET_ALLOW)
	netlink := p.jump(unix.BPF_JEQ, unix.AF_NETLINK, ifSo)
	inet := p.jump(unix.BPF_JEQ, unix.AF_INET, ifSo)
	inet6 := p.jump(unix.BPF_JEQ, unix.AF_INET6, ifSo)
	p.ret(errno(unix.EAFNOSUPPORT))

	p.here(netlink)
	p.load(argument(2))
	p.when(unix.BPF_JEQ, unix.NETLINK_ROUTE, unix.SECCOMP_RET_ALLOW)
	p.ret(errno(unix.EPROTONOSUPPORT))

	p.here(inet, inet6)
	p.load(argument(1))
	p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf) // the rest are flags
	p.when(unix.BPF_JGT, unix.SOCK_RAW, errno(unix.ESOCKTNOSUPPORT))
	p.load(argument(2))
	for _, protocol := range []uint32{unix.IPPROTO_IP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		p.when(unix.BPF_JEQ, protocol, unix.SECCOMP_RET_ALLOW)
	}
	p.ret(errno(unix.EPROTONOSUPPORT))
}

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetArch   = 4
)

// argument is the offset of the lower half of an argument: all that are looked at
// are of type int.
func argument(i uint32) uint32 {
	offset := 16 + 8*i
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		offset += 4
	}
	return offset
}

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// program is a filter that is being written.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32) { *p = append(*p, unix.SockFilter{Code: code, K: k}) }
func (p *program) load(offset uint32)        { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }
func (p *program) ret(action uint32)         { p.add(unix.BPF_RET|unix.BPF_K, action) }

// when ends the filter with action where the comparison holds.
func (p *program) when(compare uint16, k, action uint32) {
	after := p.jump(compare, k, ifNot)
	p.ret(action)
	p.here(after)
}

const (
	ifSo  = true
	ifNot = false
)

// A branch is a jump whose target is not known yet.
type branch struct {
	at int
	on bool
}

// jump goes where here will say when the comparison holds, or when it does not.
func (p *program) jump(compare uint16, k uint32, on bool) branch {
	p.add(unix.BPF_JMP|compare|unix.BPF_K, k)
	return branch{len(*p) - 1, on}
}

// here is the target of these jumps.
func (p *program) here(branches ...branch) {
	for _, b := range branches {
		distance := uint8(len(*p) - b.at - 1)
		if b.on {
			(*p)[b.at].Jt = distance
		} else {
			(*p)[b.at].Jf = distance
		}
	}
}
