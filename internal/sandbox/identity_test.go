package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gotest.tools/v3/assert"
)

func TestSubordinateIDs(t *testing.T) {
	t.Parallel()
	u := &user.User{Username: "ann", Uid: "1000"}
	tests := []struct {
		name, content, want string
		found               int
	}{
		{"none", "", "0 1000 1", 0},
		{"another's", "bob:100000:65536\nannabel:1:65536\n", "0 1000 1", 0},
		{"by name", "bob:100000:65536\nann:165536:65536\n", "0 1000 1 1 165536 65536", 65536},
		{"by number", "1000:165536:65536\n", "0 1000 1 1 165536 65536", 65536},
		{"several", "ann:200000:1000\nann:300000:65000\n", "0 1000 1 1 200000 1000 1001 300000 65000", 66000},
		{"twice", "ann:200000:1000\n1000:200000:1000\n", "0 1000 1 1 200000 1000", 1000},
		{"no newline", "ann:200000:1000", "0 1000 1 1 200000 1000", 1000},
		{"odd lines", "# ann\n\nann\nann:x:1\nann:1\nann:5:-5\nann:0:65536\nann:1:2:3\n", "0 1000 1", 0},
	}
	for _, tt := range tests {
		args, found := mapArgs(1000, subordinateIDs([]byte(tt.content), u))
		assert.Equal(t, strings.Join(args, " "), tt.want, tt.name)
		assert.Equal(t, found, tt.found, tt.name)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"none allowed", map[string]string{"sys/user/max_user_namespaces": "0\n"}, "user.max_user_namespaces is 0 on this host: sysctl -w user.max_user_namespaces=10000"},
		{"Debian", map[string]string{"sys/user/max_user_namespaces": "96551\n", "sys/kernel/unprivileged_userns_clone": "0\n"}, "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"Ubuntu", map[string]string{"sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"container", map[string]string{"self/status": "NoNewPrivs:\t0\nSeccomp:\t2\n"}, "seccomp=unconfined"},
		{"chroot", map[string]string{"self/status": "Seccomp:\t0\n", "sys/kernel/unprivileged_userns_clone": "1\n"}, "inside a chroot"},
		{"nothing to be seen", nil, "inside a chroot"},
	}
	for _, tt := range tests {
		text := refusal(func(path string) ([]byte, error) {
			if content, ok := tt.files[strings.TrimPrefix(path, "/proc/")]; ok {
				return []byte(content), nil
			}
			return nil, fs.ErrNotExist
		})
		assert.Assert(t, strings.Contains(text, tt.want), "%s: %s", tt.name, text)
	}
}

// newUser makes a user of the host for the test.
func newUser(t *testing.T, name string, args ...string) *syscall.Credential {
	t.Helper()
	name = fmt.Sprintf("%s%d", name, os.Getpid())
	out, err := exec.Command("useradd", append(args, "--home-dir", "/nonexistent", name)...).CombinedOutput()
	assert.NilError(t, err, "%s", out)
	t.Cleanup(func() {
		out, err := exec.Command("userdel", name).CombinedOutput()
		assert.NilError(t, err, "%s", out)
	})
	u, err := user.Lookup(name)
	assert.NilError(t, err)
	uid, err := strconv.Atoi(u.Uid)
	assert.NilError(t, err)
	gid, err := strconv.Atoi(u.Gid)
	assert.NilError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// as runs a command in the box as that user. The box becomes the user's.
func (b box) as(t *testing.T, cred *syscall.Credential, role string, args ...string) (string, error) {
	t.Helper()
	assert.NilError(t, filepath.WalkDir(filepath.Dir(b.dir), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(cred.Uid), int(cred.Gid)))
	}))
	self := filepath.Join(b.dir, "self")
	program, err := os.ReadFile("/proc/self/exe")
	assert.NilError(t, err)
	write(t, self, string(program), 0o755)
	cmd := exec.CommandContext(t.Context(), self, append([]string{b.dir}, args...)...)
	cmd.Dir, cmd.Env = "/", []string{roleVar + "=" + role, "PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestOrdinaryUser: what the tests of walls see as root, a user with subordinate
// IDs sees, too.
func TestOrdinaryUser(t *testing.T) {
	cred := newUser(t, "dkms2bin-a", "--no-create-home")
	var b box
	for _, role := range []string{"run", "memory"} {
		b = newBox(t)
		write(t, filepath.Join(b.base(), "bin/attempts"), string(buildAttempts(t)), 0o755)
		out, err := b.as(t, cred, role, "sh", "-c", `
		id -u; id -g; cat /proc/sys/kernel/ostype
		echo x >/etc/new; chown 33:42 /etc/new; chmod 600 /etc/new; stat -c '%u:%g' /etc/new; cat /etc/new
		echo y >/etc/own; chmod 4755 /etc/own; mkdir -m 700 /var/closed; chown 42:42 /var/closed; echo z >/var/closed/file
		VICTIM=/nowhere attempts`)
		assert.NilError(t, err, "%s", out)
		assert.Assert(t, strings.HasPrefix(out, "0\n0\nLinux\n33:42\nx\n"), out)
		for name, outcome := range outcomes(out) {
			works := strings.HasPrefix(name, "works_") || name == "i386_getpid" || name == "i386_inet"
			assert.Check(t, (outcome == "done") == works, "%s: %s", name, outcome)
		}
		owner := func(name string) *syscall.Stat_t {
			info, err := os.Lstat(filepath.Join(b.upper(), name))
			assert.NilError(t, err)
			return info.Sys().(*syscall.Stat_t)
		}
		assert.Equal(t, owner("etc/own").Uid, cred.Uid)
		assert.Assert(t, owner("etc/new").Uid > 65535 && owner("etc/new").Uid != owner("etc/new").Gid)
	}

	// And where overlayfs cannot write to the disk.
	for _, how := range []string{"copies", "memory"} {
		b2 := newBox(t)
		out, err := b2.as(t, cred, how, "sh", "-c", `
			echo x >/etc/new; chown 33:42 /etc/new; mkdir -m 700 /var/closed; echo z >/var/closed/file; chown -R 42:42 /var/closed; rm /etc/hosts`)
		assert.NilError(t, err, "%s", out)
		for _, layers := range []string{how, "run"} { // the same root once more, and by overlayfs what was left
			cmd := exec.CommandContext(t.Context(), filepath.Join(b2.dir, "self"), b2.dir, "sh", "-c", "stat -c %u:%g:%a /etc/new /var/closed /var/closed/file; cat /var/closed/file; ls /etc")
			cmd.Dir, cmd.Env = "/", []string{roleVar + "=" + layers, "PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
			text, err := cmd.CombinedOutput()
			assert.NilError(t, err, "%s", text)
			assert.Equal(t, string(text), "33:42:644\n42:42:700\n42:42:644\nz\nnew\n", layers)
		}
		info, err := os.Lstat(filepath.Join(b2.upper(), "etc/hosts"))
		assert.NilError(t, err)
		assert.Assert(t, info.Mode()&fs.ModeCharDevice != 0)
	}

	out, err := b.as(t, cred, "host", "sh", "-c", "id -u; ls /home /run; mount -t tmpfs none /tmp && echo mounted; echo x >/etc/dkms2bin-test")
	assert.ErrorContains(t, err, "exit status")
	assert.Assert(t, strings.Contains(out, "mounted\n") && strings.Contains(out, "ead-only file system"), out)
}

// TestUserWithoutIDs: one sentence says what is missing and what grants it.
func TestUserWithoutIDs(t *testing.T) {
	cred := newUser(t, "dkms2bin-b", "--system")
	b := newBox(t)
	out, err := b.as(t, cred, "run", "sh", "-c", "echo it ran")
	assert.ErrorContains(t, err, "exit status 91")
	assert.Assert(t, strings.Contains(out, "has 0 subordinate IDs in /etc/subuid") && strings.Contains(out, "usermod --add-subuids"), out)
	out, err = b.as(t, cred, "real root", "sh", "-c", "echo it ran")
	assert.ErrorContains(t, err, "exit status 91")
	assert.Assert(t, strings.Contains(out, "must be the host's root"), out)
}
