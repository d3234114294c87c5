package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// makeRoot puts the root together on conf.Mountpoint and makes it this
// process's root directory. Afterwards nothing of the host's tree can be
// reached except through the binds that were asked for. What is written to memory is
// returned, where anything is.
func makeRoot(conf config) (w *written, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("cannot make the mounts private: %w", err)
	}
	root := conf.Mountpoint
	if conf.Root.Memory > 0 && conf.Root.Upper != "" && len(conf.Root.Layers) > 0 {
		w, err = mountInMemory(conf.Root, root)
	} else {
		err = mountRoot(conf.Root, root)
	}
	if err != nil {
		return nil, err
	}
	tmp := conf.Root.Upper == "" // nothing else can be written to
	if err := mountSystem(root, tmp); err != nil {
		return nil, err
	}
	if !conf.RealRoot {
		if err := endNamespaces(filepath.Join(root, "proc")); err != nil {
			return nil, err
		}
	}
	if err := freezeProc(filepath.Join(root, "proc"), filepath.Join(root, "dev/null")); err != nil {
		return nil, err
	}
	files := conf.Files
	if conf.Network {
		resolver, err := resolverFiles(conf.Root.Host)
		if err != nil {
			return nil, err
		}
		files = append(resolver, files...)
	}
	if err := placeFiles(root, files, tmp); err != nil {
		return nil, err
	}
	for _, b := range conf.Binds {
		if err := bindInto(root, b, tmp); err != nil {
			return nil, err
		}
	}
	if err := os.Chdir(root); err != nil {
		return nil, err
	}
	// pivot_root(2): with both arguments the same directory, the old root ends
	// up on top of the new one and can be detached at once.
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("cannot change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("cannot detach the host's root: %w", err)
	}
	return w, os.Chdir("/")
}

func mountRoot(r Root, root string) error {
	switch {
	case r.Host:
		if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("cannot bind the host's root: %w", err)
		}
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, root, unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("cannot make the host's root read-only (Linux 5.12 is needed): %w", err)
		}
		return nil
	case len(r.Layers) == 0 && r.Upper != "":
		return bind(r.Upper, root, unix.MOUNT_ATTR_NODEV)
	case len(r.Layers) == 0:
		return errors.New("cannot make a root of no layers")
	case r.Upper == "" && len(r.Layers) == 1:
		return bind(r.Layers[0], root, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY)
	}
	// Layers are named by descriptor: no path needs escaping then, and a long
	// list still fits the page that mount options may have.
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &fs.PathError{Op: "open layer", Path: dir, Err: err}
		}
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	lowers := make([]string, len(r.Layers))
	for i, dir := range r.Layers {
		var err error
		if lowers[i], err = name(dir); err != nil {
			return err
		}
	}
	options := "userxattr,lowerdir=" + strings.Join(lowers, ":")
	if r.Upper != "" {
		upper, err := name(r.Upper)
		if err != nil {
			return err
		}
		work, err := name(r.Work)
		if err != nil {
			return err
		}
		// Otherwise the end of each command waits for the disk to take all that anybody
		// has written there. The kernel marks the directory, so that nobody who expects
		// that uses it again.
		if err := unmark(r.Work); err != nil {
			return err
		}
		options += ",volatile,upperdir=" + upper + ",workdir=" + work
	}
	if err := unix.Mount("overlay", root, "overlay", unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("cannot mount an overlay of %d layers, writable in %q: %w%s", len(r.Layers), r.Upper, err, overlayAdvice(err, r.Upper))
	}
	return nil
}

// unmark removes from a work directory what the kernel has left there to tell that an
// overlay was volatile.
func unmark(work string) error {
	root, err := os.OpenRoot(work)
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll("work/incompat"), root.Close())
}

// overlayAdvice says what an overlay lacks here, as far as the error and the file
// system tell.
func overlayAdvice(err error, upper string) string {
	var fs unix.Statfs_t
	switch {
	case errors.Is(err, unix.ENODEV):
		return ": this kernel has no overlayfs, which modprobe overlay loads where it is a module"
	case errors.Is(err, unix.EPERM):
		return ": Linux 5.11 or later allows it in user namespaces, unless a container forbids mounts: " +
			"docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined lets them"
	case upper != "" && unix.Statfs(upper, &fs) == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC:
		return ": that lies on an overlay itself, as in a container: put it on a volume"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return ": that must be on a file system that overlayfs can write to, such as ext4, xfs, btrfs, or tmpfs of Linux 6.6"
	}
	return ""
}

// inRoot opens path inside root, links resolved as a process with that root
// would, and returns a name for it that mount(2) takes. A link in a foreign tree
// thus never leads a mount outside of it.
func inRoot(root, path string) (string, error) { return openIn(root, path, 0) }

func openIn(root, path string, resolve uint64) (string, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
	if err != nil {
		return "", &fs.PathError{Op: "open in the tree", Path: path, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// mountSystem gives the root a /proc, /dev, /sys and /run of its own, and with
// tmp a /tmp. A link in their place would lead what is written there afterwards
// out of the tree, so it is refused.
func mountSystem(root string, tmp bool) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []struct {
		target, fstype string
		flags          uintptr
		options        string
	}{
		{"/proc", "proc", quiet, ""},
		{"/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755,size=1m"},
		{"/sys", "tmpfs", quiet | unix.MS_RDONLY, "mode=555,size=0"},
		{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=64m"},
	}
	if tmp {
		mounts = append(mounts, mounts[len(mounts)-1])
		mounts[len(mounts)-1].target, mounts[len(mounts)-1].options = "/tmp", "mode=1777"
	}
	for _, m := range mounts {
		target, err := openIn(root, m.target, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, target, m.fstype, m.flags, m.options); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	// From here on the names lead into what was just mounted.
	at := func(path string) string { return filepath.Join(root, path) }
	if err := makeDev(at("/dev")); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(at("/run/lock"), 0o755), os.Chmod(at("/run/lock"), 0o777|fs.ModeSticky)); err != nil {
		return err
	}
	return nil
}

// endNamespaces allows no user namespaces below this process's own: in one of
// those, every command would have all capabilities, and all of the kernel's code
// for mounts and networks to itself. See namespaces(7). Without a user namespace of
// its own this process would set it for the whole host.
func endNamespaces(proc string) error {
	if err := os.WriteFile(filepath.Join(proc, "sys/user/max_user_namespaces"), []byte("0"), 0); err != nil {
		return fmt.Errorf("cannot forbid more user namespaces: %w", err)
	}
	return nil
}

// freezeProc makes all of /proc read-only that is not about a process: sysctls,
// sysrq, settings of devices. Identity 0 inside owns these files outside, and
// their checks ask for nothing more. What only the host's root may read, and the
// names of its keys, are covered. Which files there are differs from kernel to
// kernel.
func freezeProc(proc, null string) error {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // a process that has ended
			continue
		}
		if err != nil {
			return err
		}
		name := e.Name()
		source, target := "", filepath.Join(proc, name)
		switch {
		case name[0] >= '0' && name[0] <= '9': // a process
		case info.IsDir():
			source = target
		case !info.Mode().IsRegular(): // a link to one's own process
		case info.Mode()&0o044 == 0, name == "keys", name == "key-users":
			source = null
		case info.Mode()&0o222 != 0:
			source = target
		}
		if source == "" {
			continue
		}
		if err := bind(source, target, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return nil
}

func makeDev(dev string) error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		target := filepath.Join(dev, name)
		if err := os.WriteFile(target, nil, 0o666); err != nil {
			return err
		}
		// Read-only is the node, which is the host's own, with its mode and times;
		// the device behind it can be written to.
		if err := bind("/dev/"+name, target, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	for _, dir := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"); err != nil {
		return fmt.Errorf("cannot mount devpts: %w", err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=64m"); err != nil {
		return fmt.Errorf("cannot mount tmpfs on /dev/shm: %w", err)
	}
	for link, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, link)); err != nil {
			return err
		}
	}
	return nil
}

// resolverFiles are the host's resolver settings. Where /etc/resolv.conf is a
// link into /run (as systemd-resolved makes it) the content is what counts.
func resolverFiles(host bool) ([]File, error) {
	var files []File
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		target := path
		if host {
			if target, err = filepath.EvalSymlinks(path); err != nil {
				return nil, err
			}
			if !strings.HasPrefix(target, "/run/") {
				continue // visible anyway
			}
		}
		files = append(files, File{Target: target, Content: content, Mode: 0o644, IfExists: !host})
	}
	return files, nil
}

const filesDir = "/run/.dkms2bin"

// placeFiles writes the contents below /run, which is in memory, and binds them
// over their targets.
func placeFiles(root string, files []File, tmp bool) error {
	if len(files) == 0 {
		return nil
	}
	dir := filepath.Join(root, filesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i, f := range files {
		source := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(source, f.Content, 0o600); err != nil {
			return err
		}
		if err := os.Chmod(source, f.Mode); err != nil {
			return err
		}
		if f.IfExists {
			if _, err := inRoot(root, f.Target); errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if err := bindInto(root, Bind{Source: source, Target: f.Target}, tmp); err != nil {
			return err
		}
	}
	return nil
}

// bindInto binds a file or directory into the root. Targets in memory, which
// /tmp is only where mountSystem has made it, are created.
func bindInto(root string, b Bind, tmp bool) error {
	if strings.HasPrefix(b.Target, "/run/") || tmp && strings.HasPrefix(b.Target, "/tmp/") {
		info, err := os.Stat(b.Source)
		if err != nil {
			return err
		}
		target := filepath.Join(root, b.Target)
		parent := filepath.Dir(target)
		if info.IsDir() {
			parent = target
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
		if !info.IsDir() {
			if err := os.WriteFile(target, nil, 0o644); err != nil {
				return err
			}
		}
	}
	target, err := inRoot(root, b.Target)
	if err != nil {
		return err
	}
	if b.Write {
		return bind(b.Source, target, 0)
	}
	return bind(b.Source, target, unix.MOUNT_ATTR_RDONLY)
}

// bind binds source on target, as a mount of its own, with these attributes of
// mount_setattr(2) besides those it has.
func bind(source, target string, attributes uint64) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot bind %s: %w", source, err)
	}
	defer unix.Close(fd)
	if attributes != 0 {
		attr := &unix.MountAttr{Attr_set: attributes}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fmt.Errorf("cannot set the flags of the bind of %s (Linux 5.12 is needed): %w", source, err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("cannot bind %s on %s: %w", source, target, err)
	}
	return nil
}
