package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// writeIDMaps maps the identities of the user namespace of process pid. For root
// all that this process has itself are mapped one to one. For others identity 0
// inside is the user, and the rest are the subordinate IDs of the user, see
// subuid(5).
func writeIDMaps(pid int) error {
	err := writeOwnMaps(pid)
	if errors.Is(err, unix.EPERM) {
		err = writeSubordinateMaps(pid)
	}
	if err != nil {
		return fmt.Errorf("cannot map identities into the user namespace: %w", err)
	}
	return nil
}

func writeOwnMaps(pid int) error {
	for _, name := range []string{"uid_map", "gid_map"} {
		own, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return err
		}
		var lines []string
		for line := range strings.Lines(string(own)) {
			var inside, outside, count uint64
			if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
				return fmt.Errorf("cannot read /proc/self/%s: %w", name, err)
			}
			lines = append(lines, fmt.Sprintf("%d %d %d\n", inside, inside, count))
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), []byte(strings.Join(lines, "")), 0); err != nil {
			return err
		}
	}
	return nil
}

// enoughIDs are the identities from 1 to those of nobody and nogroup.
const enoughIDs = 65534

func writeSubordinateMaps(pid int) error {
	own, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil {
		return fmt.Errorf("user %d has no name, and so no subordinate IDs: %w", os.Getuid(), err)
	}
	for _, kind := range []struct {
		program, file string
		own           int
	}{{"newuidmap", "/etc/subuid", os.Getuid()}, {"newgidmap", "/etc/subgid", os.Getgid()}} {
		content, err := os.ReadFile(kind.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		args, found := mapArgs(kind.own, subordinateIDs(content, own))
		if found < enoughIDs {
			return fmt.Errorf("user %s has %d subordinate IDs in %s, and %d are needed: "+
				"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %[1]s grants them, with numbers that nobody else has",
				own.Username, found, kind.file, enoughIDs)
		}
		out, err := exec.Command(kind.program, append([]string{strconv.Itoa(pid)}, args...)...).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s is not installed, which gives users their subordinate IDs: apt-get install uidmap", kind.program)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", kind.program, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// A span is a row of identities.
type span struct{ first, count int }

// subordinateIDs are those of a user in a file like subuid(5), which may name them
// by name or number. Lines that are no such thing are passed over.
func subordinateIDs(content []byte, u *user.User) []span {
	var spans []span
	for line := range strings.Lines(string(content)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 || fields[0] != u.Username && fields[0] != u.Uid {
			continue
		}
		first, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err1 == nil && err2 == nil && first > 0 && count > 0 && !slices.Contains(spans, span{first, count}) {
			spans = append(spans, span{first, count})
		}
	}
	return spans
}

// mapArgs are the arguments of newuidmap(1) or newgidmap(1) for own as identity 0
// and the others from 1 on, and how many of those there are.
func mapArgs(own int, spans []span) (args []string, found int) {
	add := func(numbers ...int) {
		for _, n := range numbers {
			args = append(args, strconv.Itoa(n))
		}
	}
	add(0, own, 1)
	for _, s := range spans {
		add(1+found, s.first, s.count)
		found += s.count
	}
	return args, found
}

// startError says what this host refuses when it refuses namespaces, and what
// would allow them.
func startError(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return fmt.Errorf("cannot make a user namespace: %w: %s", err, refusal(os.ReadFile))
}

// refusal names the setting that forbids user namespaces, as far as it can be seen.
func refusal(read func(string) ([]byte, error)) string {
	value := func(path string) string {
		content, _ := read(path)
		return strings.TrimSpace(string(content))
	}
	for _, s := range []struct{ sysctl, bad, good string }{
		{"user/max_user_namespaces", "0", "10000"},
		{"kernel/unprivileged_userns_clone", "0", "1"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "0"},
	} {
		if value("/proc/sys/"+s.sysctl) == s.bad {
			name := strings.ReplaceAll(s.sysctl, "/", ".")
			return fmt.Sprintf("%s is %s on this host: sysctl -w %s=%s allows it", name, s.bad, name, s.good)
		}
	}
	if strings.Contains(value("/proc/self/status"), "Seccomp:\t2") {
		return "the container or service that this runs in filters system calls: it must allow unshare and mount, " +
			"as docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined does; " +
			"in a container that is thrown away afterwards, mkchroot --in-place does without"
	}
	return "the kernel refuses it inside a chroot: run it outside of that; in a container that is thrown away afterwards, mkchroot --in-place does without"
}
