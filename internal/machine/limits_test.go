package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

func TestMain(m *testing.M) {
	if os.Getenv("MACHINE_TEST_SAY") != "" {
		fmt.Println(Cores(), Memory())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// within is what a process is told that the shell has put somewhere before: $1 is a
// control group that is made for it.
func within(t *testing.T, group, script string) (cores int, memory int64) {
	t.Helper()
	if group != "" {
		assert.NilError(t, os.Mkdir(group, 0o755))
		t.Cleanup(func() { assert.NilError(t, os.Remove(group)) })
	}
	self, err := os.Executable()
	assert.NilError(t, err)
	cmd := exec.Command("sh", "-euc", script+"\nexec \"$2\"", "sh", group, self)
	cmd.Env = append(os.Environ(), "MACHINE_TEST_SAY=yes")
	out, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", out)
	_, err = fmt.Sscan(string(out), &cores, &memory)
	assert.NilError(t, err, "%s", out)
	return cores, memory
}

// groups is where a controller's hierarchy is mounted, and the parent of a group for
// it: that of control groups version 1, or of version 2 with the controller on.
func groups(t *testing.T, controller string) (dir string, version int) {
	t.Helper()
	var fs unix.Statfs_t
	v1 := filepath.Join("/sys/fs/cgroup", controller)
	if unix.Statfs(v1, &fs) == nil && fs.Type == unix.CGROUP_SUPER_MAGIC {
		return v1, 1
	}
	dir = filepath.Join("/sys/fs/cgroup", fmt.Sprintf("dkms2bin-test-%d-%s", os.Getpid(), controller))
	if unix.Statfs("/sys/fs/cgroup", &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC || os.Mkdir(dir, 0o755) != nil {
		t.Skipf("no control groups can be made here for %s", controller)
	}
	t.Cleanup(func() { assert.NilError(t, os.Remove(dir)) })
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
		t.Skipf("the controller %s is not to be had: %v", controller, err)
	}
	return dir, 2
}

// TestRealLimits: what the kernel really limits is obeyed.
func TestRealLimits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes control groups")
	}
	group := func(t *testing.T, controller string) (string, int) {
		dir, version := groups(t, controller)
		return filepath.Join(dir, fmt.Sprintf("dkms2bin-test-%d", os.Getpid())), version
	}
	_, free := within(t, "", "")
	t.Run("affinity", func(t *testing.T) {
		cores, _ := within(t, "", `exec taskset -c "$(taskset -cp $$ | sed 's/.*: *\([0-9]*\).*/\1/')" "$2"`)
		assert.Equal(t, cores, 1)
	})
	t.Run("cpuset", func(t *testing.T) {
		dir, version := group(t, "cpuset")
		script := `echo 0 >"$1/cpuset.cpus"; echo $$ >"$1/cgroup.procs"`
		if version == 1 {
			script = `echo 0 >"$1/cpuset.mems"; ` + script
		}
		cores, _ := within(t, dir, script)
		assert.Equal(t, cores, 1)
	})
	t.Run("cpu time", func(t *testing.T) {
		dir, version := group(t, "cpu")
		script := `echo "100000 100000" >"$1/cpu.max"; echo $$ >"$1/cgroup.procs"`
		if version == 1 {
			script = `echo 100000 >"$1/cpu.cfs_quota_us"; echo $$ >"$1/cgroup.procs"`
		}
		cores, _ := within(t, dir, script)
		assert.Equal(t, cores, 1)
	})
	t.Run("memory", func(t *testing.T) {
		const limit = 200 << 20
		dir, version := group(t, "memory")
		script := `echo 209715200 >"$1/memory.max"; echo $$ >"$1/cgroup.procs"`
		if version == 1 {
			script = `echo 209715200 >"$1/memory.limit_in_bytes"; echo $$ >"$1/cgroup.procs"`
		}
		_, memory := within(t, dir, script)
		assert.Assert(t, memory > limit/2 && memory <= limit, "%d of %d", memory, free)
	})
}
