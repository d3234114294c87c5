/* attempts [NAME...]: tries ways out of the sandbox, all or those named, and
 * prints for each "NAME: done", or "NAME: " and the name of the error. What it
 * needs to know of the host comes in the environment:
 *
 *	VICTIM	directory of the host, with a file "file" in it
 *	HOST_PID	process of the host
 *	PORT	TCP port of the host's loopback
 *	ABSTRACT	name of the host's socket in the abstract namespace
 *	MODULE	a kernel module
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *env(const char *name)
{
	const char *value = getenv(name);
	return value ? value : "";
}

static int failed(int e)
{
	errno = e;
	return -1;
}

/* write_to opens for writing what must not be, and changes it if that works. */
static int write_to(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	return fd < 0 || write(fd, "x", 1) < 0 ? -1 : 0;
}

static int open_only(const char *path, int flags)
{
	return open(path, flags | O_CLOEXEC | O_NONBLOCK);
}

static char path[8192];

static const char *below(const char *prefix)
{
	snprintf(path, sizeof path, "%s%s/file", prefix, env("VICTIM"));
	return path;
}

/* Modules */
static int a_init_module(void) { return syscall(SYS_init_module, "x", 1UL, ""); }
static int a_finit_module(void)
{
	int fd = open(env("MODULE"), O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", 0);
}
static int a_delete_module(void) { return syscall(SYS_delete_module, "nosuchmodule", O_NONBLOCK); }
static int a_kexec(void) { return syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL); }
static int a_line_discipline(void)
{
	int n = 13 /* N_HDLC, a module */, fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	return fd < 0 ? -1 : ioctl(fd, TIOCSETD, &n);
}
static int a_family(void) { return socket(AF_BLUETOOTH, SOCK_RAW, 0); }
static int a_protocol(void) { return socket(AF_INET, SOCK_SEQPACKET, 132 /* SCTP */); }
static int a_type(void) { return socket(AF_INET6, 6 /* DCCP */ | SOCK_CLOEXEC, 0); }
static int a_crypto(void) { return socket(AF_ALG, SOCK_SEQPACKET, 0); }
static int a_netlink(void) { return socket(AF_NETLINK, SOCK_RAW, 12 /* NETFILTER */); }

/* Mounts */
static int a_mount(void) { return mount("none", "/mnt", "tmpfs", 0, ""); }
static int a_mount_proc(void) { return mount("proc", "/mnt", "proc", 0, ""); }
static int a_mount_disk(void) { return mount("/dev/vda", "/mnt", "ext4", 0, ""); }
static int a_bind(void) { return mount("/etc", "/mnt", NULL, MS_BIND, NULL); }
static int a_remount(void) { return mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL); }
static int a_propagation(void) { return mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL); }
static int a_umount(void) { return umount2("/proc/sys", MNT_DETACH); }
static int a_fsopen(void) { return syscall(430 /* fsopen */, "tmpfs", 0); }
static int a_open_tree(void) { return syscall(428 /* open_tree */, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */); }
static int a_pivot_root(void) { return syscall(SYS_pivot_root, ".", "."); }
static int a_swapon(void) { return swapon("/etc/passwd", 0); }

/* Namespaces */
/* In a child of their own, so that what works says nothing of the others. */
static int in_child(int (*try)(void))
{
	int pid = fork(), status = 0;
	if (pid == 0)
		_exit(try() < 0 ? errno : 0);
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status) ? failed(WEXITSTATUS(status)) : 0;
}
static int c_unshare_user(void) { return unshare(CLONE_NEWUSER); }
static int c_unshare_mount(void) { return unshare(CLONE_NEWNS); }
static int a_unshare_user(void) { return in_child(c_unshare_user); }
static int a_unshare_mount(void) { return in_child(c_unshare_mount); }
static int reap(long pid)
{
	if (pid == 0)
		_exit(0);
	if (pid < 0)
		return -1;
	waitpid(pid, NULL, __WALL);
	return 0;
}
static int a_clone_user(void) { return reap(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)); }
static int a_clone3_user(void)
{
	uint64_t args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
	return reap(syscall(435 /* clone3 */, args, sizeof args));
}
static int a_setns(void)
{
	int fd = open("/proc/1/ns/user", O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -1 : setns(fd, 0);
}

/* Files of the host */
static int a_path(void) { return write_to(below("")); }
static int a_read(void) { return open_only(below(""), O_RDONLY); }
static int a_dotdot(void) { return write_to(below("../../../../../../../../../../../../../../..")); }
static int a_link(void)
{
	unlink("/tmp/out");
	if (symlink("/../../../../../../../..", "/tmp/out") < 0)
		return -1;
	return write_to(below("/tmp/out"));
}
static int a_proc_root(void) { return write_to(below("/proc/1/root")); }
static int a_proc_cwd(void) { return write_to(below("/proc/1/cwd/../../../..")); }
static int a_parent_root(void)
{
	char prefix[64];
	snprintf(prefix, sizeof prefix, "/proc/%d/root", getppid());
	return write_to(below(prefix));
}
/* The classic: a root directory below the working directory. */
static int c_chroot(void)
{
	mkdir("/tmp/jail", 0755);
	if (chroot("/tmp/jail") < 0)
		return -1;
	for (int i = 0; i < 64; i++)
		if (chdir("..") < 0)
			return -1;
	return chroot(".") < 0 ? -1 : write_to(below(""));
}
static int a_chroot(void) { return in_child(c_chroot); }
static int a_handle(void)
{
	struct { struct file_handle h; char bytes[128]; } f = {.h = {.handle_bytes = 128}};
	int id;
	if (name_to_handle_at(AT_FDCWD, "/proc", &f.h, &id, 0) < 0)
		memset(&f, 0, sizeof f);
	return open_by_handle_at(AT_FDCWD, &f.h, O_RDONLY);
}
static int a_descriptors(void)
{
	for (int fd = 3; fd < 1024; fd++) {
		struct stat s;
		if (fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) {
			snprintf(path, sizeof path, "..%s/file", env("VICTIM"));
			if (openat(fd, path, O_WRONLY) >= 0)
				return 0;
		}
	}
	return failed(ENOENT);
}
static int a_init_descriptors(void) { return open_only("/proc/1/fd/3", O_RDONLY); }
static int a_init_memory(void) { return open_only("/proc/1/mem", O_RDWR); }

/* Devices */
static int a_mknod_memory(void) { return mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1)); }
static int a_mknod_disk(void) { return mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0)); }
static int a_dev_memory(void) { return open_only("/dev/mem", O_RDWR); }
static int a_dev_log(void) { return open_only("/dev/kmsg", O_RDWR); }
static int a_dev_disk(void) { return open_only("/dev/vda", O_RDWR); }
static int a_dev_kvm(void) { return open_only("/dev/kvm", O_RDWR); }
static int a_dev_fuse(void) { return open_only("/dev/fuse", O_RDWR); }
static int a_dev_loop(void) { return open_only("/dev/loop-control", O_RDWR); }
static int a_dev_mode(void) { return chmod("/dev/full", 0600); }
static int a_dev_owner(void) { return chown("/dev/full", 1, 1); }
static int a_dev_times(void) { return utimes("/dev/full", (struct timeval[]){{1, 0}, {1, 0}}); }
static int a_dev_remove(void) { return unlink("/dev/full"); }
static int a_io_ports(void) { return syscall(SYS_iopl, 3); }

/* Settings of the kernel */
static int a_core_pattern(void) { return write_to("/proc/sys/kernel/core_pattern"); }
static int a_modprobe_path(void) { return write_to("/proc/sys/kernel/modprobe"); }
static int a_printk(void) { return write_to("/proc/sys/kernel/printk"); }
static int a_forwarding(void) { return write_to("/proc/sys/net/ipv4/ip_forward"); }
static int a_namespaces(void) { return write_to("/proc/sys/user/max_user_namespaces"); }
static int a_sysrq(void) { return write_to("/proc/sysrq-trigger"); }
static int a_irq(void) { return write_to("/proc/irq/default_smp_affinity"); }
static int a_sysfs(void) { return write_to("/sys/power/state"); }
static int a_hostname(void) { return sethostname("other", 5); }
static int a_core_limit(void) { return setrlimit(RLIMIT_CORE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}); }
static int a_reboot(void) { return syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, NULL); }
static int a_kernel_log(void) { return klogctl(3, path, sizeof path) < 0 ? -1 : 0; }

/* Clocks */
static int a_clock(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return clock_settime(CLOCK_REALTIME, &now);
}
static int a_time_of_day(void)
{
	struct timeval now;
	gettimeofday(&now, NULL);
	return settimeofday(&now, NULL);
}
static int a_adjust(void) { return adjtimex(&(struct timex){.modes = ADJ_OFFSET, .offset = 0}) < 0 ? -1 : 0; }

/* Processes */
static int host_pid(void)
{
	int pid = atoi(env("HOST_PID"));
	return pid > 1 ? pid : 1 << 22; /* which nobody has */
}
static int a_kill(void) { return kill(host_pid(), SIGKILL); }
static int a_kill_group(void) { return kill(-host_pid(), SIGKILL); }
static int a_ptrace(void) { return ptrace(PTRACE_ATTACH, host_pid(), NULL, NULL) < 0 ? -1 : 0; }
static int a_ptrace_init(void) { return ptrace(PTRACE_SEIZE, 1, NULL, NULL) < 0 ? -1 : 0; }
static int a_read_init(void)
{
	struct iovec iov = {path, 1};
	return process_vm_readv(1, &iov, 1, &iov, 1, 0) < 0 ? -1 : 0;
}
static int a_priority(void) { return setpriority(PRIO_PROCESS, 0, -10); }

/* The network, and the host's sockets */
static int a_loopback(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(env("PORT"))), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	return connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to);
}
static int a_internet(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr = {htonl(0xc0000201)}};
	return connect(socket(AF_INET, SOCK_DGRAM, 0), (struct sockaddr *)&to, sizeof to);
}
static int a_abstract(void)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	strncpy(to.sun_path + 1, env("ABSTRACT"), sizeof to.sun_path - 2);
	return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(env("ABSTRACT")));
}
static int a_bus(void)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket"};
	return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to);
}
static int a_vsock(void) { return socket(AF_VSOCK, SOCK_STREAM, 0); }
static int a_raw_socket(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int a_packet_socket(void) { return socket(AF_PACKET, SOCK_RAW, 0); }
static int a_link_down(void)
{
	struct ifreq lo = {.ifr_name = "lo"};
	return ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &lo);
}

/* What namespaces know nothing of */
static int a_keyctl(void) { return syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3 /* the session's */, 0) < 0 ? -1 : 0; }
static int a_add_key(void) { return syscall(SYS_add_key, "user", "dkms2bin", "x", 1, -3) < 0 ? -1 : 0; }
static int a_request_key(void) { return syscall(SYS_request_key, "user", "dkms2bin", NULL, 0) < 0 ? -1 : 0; }
static int a_bpf(void) { return syscall(SYS_bpf, 0 /* BPF_MAP_CREATE */, (uint32_t[]){2, 4, 4, 1}, 16); }
static int a_perf(void)
{
	uint64_t attr[16] = {1 /* software */ | 128UL << 32, 0 /* cpu clock */};
	return syscall(SYS_perf_event_open, attr, 0, -1, -1, 0);
}
static int a_userfaultfd(void) { return syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */); }
static int a_io_uring(void)
{
	char params[120] = "";
	return syscall(425 /* io_uring_setup */, 1, params);
}

#ifdef __x86_64__
/* The same under the other two names that this kernel may know it by. */
static int i386(int nr, int one, int two, int three)
{
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "0"(nr), "b"(one), "c"(two), "d"(three) : "memory", "r8", "r9", "r10", "r11");
	return result < 0 && result > -4096 ? failed(-result) : result;
}
static int i_getpid(void) { return i386(20, 0, 0, 0) < 0 ? -1 : 0; }
static int i_keyctl(void) { return i386(288, 0, -3, 0) < 0 ? -1 : 0; }
static int i_bpf(void) { return i386(357, 0, 0, 0); }
static int i_syslog(void) { return i386(103, 10, 0, 0) < 0 ? -1 : 0; }
static int i_vsock(void) { return i386(359, AF_VSOCK, SOCK_STREAM, 0); }
static int i_inet(void) { return i386(359, AF_INET, SOCK_STREAM, 0); }
static int i_socketcall(void) { return i386(102, 1, 0, 0); }
static int c_i386_unshare(void) { return i386(310, CLONE_NEWUSER, 0, 0); }
static int i_unshare_user(void) { return in_child(c_i386_unshare); }
static int i_module(void) { return i386(128, 0, 0, 0); }
static int x_getpid(void) { return syscall(0x40000000 | SYS_getpid) < 0 ? -1 : 0; }
static int x_keyctl(void) { return syscall(0x40000000 | SYS_keyctl, 0, -3, 0) < 0 ? -1 : 0; }
static int x_socket(void) { return syscall(0x40000000 | SYS_socket, AF_VSOCK, SOCK_STREAM, 0); }
#endif

/* What must go on working */
static int w_inet(void) { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP); }
static int w_inet6(void) { return socket(AF_INET6, SOCK_DGRAM, 0); }
static int w_unix(void) { return socket(AF_UNIX, SOCK_SEQPACKET, 0); }
static int w_pair(void) { return socketpair(AF_UNIX, SOCK_STREAM, 0, (int[2]){}); }
static int w_route(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0); }
static int w_terminal(void)
{
	int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), n;
	return ioctl(fd, TIOCGPTN, &n);
}
static int w_null(void) { return write_to("/dev/null"); }

static const struct { const char *name; int (*try)(void); } attempts[] = {
#define A(x) {#x, a_##x}
	A(init_module), A(finit_module), A(delete_module), A(kexec), A(line_discipline), A(family), A(protocol), A(type), A(crypto), A(netlink),
	A(mount), A(mount_proc), A(mount_disk), A(bind), A(remount), A(propagation), A(umount), A(fsopen), A(open_tree), A(pivot_root), A(swapon),
	A(unshare_user), A(unshare_mount), A(clone_user), A(clone3_user), A(setns),
	A(path), A(read), A(dotdot), A(link), A(proc_root), A(proc_cwd), A(parent_root), A(chroot), A(handle), A(descriptors), A(init_descriptors), A(init_memory),
	A(mknod_memory), A(mknod_disk), A(dev_memory), A(dev_log), A(dev_disk), A(dev_kvm), A(dev_fuse), A(dev_loop), A(dev_mode), A(dev_owner),
	A(dev_times), A(dev_remove), A(io_ports),
	A(core_pattern), A(modprobe_path), A(printk), A(forwarding), A(namespaces), A(sysrq), A(irq), A(sysfs), A(hostname), A(core_limit), A(reboot), A(kernel_log),
	A(clock), A(time_of_day), A(adjust),
	A(kill), A(kill_group), A(ptrace), A(ptrace_init), A(read_init), A(priority),
	A(loopback), A(internet), A(abstract), A(bus), A(vsock), A(raw_socket), A(packet_socket), A(link_down),
	A(keyctl), A(add_key), A(request_key), A(bpf), A(perf), A(userfaultfd), A(io_uring),
#ifdef __x86_64__
#define I(x) {"i386_" #x, i_##x}
#define X(x) {"x32_" #x, x_##x}
	I(getpid), I(keyctl), I(bpf), I(syslog), I(vsock), I(inet), I(socketcall), I(unshare_user), I(module), X(getpid), X(keyctl), X(socket),
#endif
#define W(x) {"works_" #x, w_##x}
	W(inet), W(inet6), W(unix), W(pair), W(route), W(terminal), W(null),
};

int main(int argc, char **argv)
{
	for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
		int wanted = argc == 1;
		for (int j = 1; j < argc; j++)
			wanted |= !strcmp(argv[j], attempts[i].name);
		if (!wanted)
			continue;
		errno = 0;
		int result = attempts[i].try();
		printf("%s: %s\n", attempts[i].name, result < 0 ? strerrorname_np(errno) : "done");
		fflush(stdout);
	}
	return 0;
}
