package machine

import (
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	const meminfo = "MemTotal:       16000 kB\nMemFree:          100 kB\nMemAvailable:   8000 kB\n"
	tests := []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing is known", nil, 0},
		{"no control groups", map[string]string{"proc/meminfo": meminfo}, 8000 << 10},
		{"no limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "cg/a/memory.max": "max\n", "cg/a/memory.current": "1\n",
		}, 8000 << 10},
		{"a limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "cg/a/b/memory.max": "5000\n", "cg/a/b/memory.current": "1000\n",
		}, 4000},
		{"a limit above", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "cg/a/memory.max": "3000\n", "cg/a/memory.current": "1000\n",
			"cg/a/b/memory.max": "5000\n", "cg/a/b/memory.current": "1000\n",
		}, 2000},
		{"in a container", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "cg/memory.max": "5000\n", "cg/memory.current": "1000\n",
		}, 4000},
		{"used up", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "cg/a/memory.max": "5000\n", "cg/a/memory.current": "6000\n",
		}, 0},
		{"version 1", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "8:pids:/\n4:memory:/a\n0::/\n",
			"cg/memory/a/memory.limit_in_bytes": "5000\n", "cg/memory/a/memory.usage_in_bytes": "2000\n",
			"cg/memory/memory.limit_in_bytes": "9223372036854771712\n", "cg/memory/memory.usage_in_bytes": "2000\n",
		}, 3000},
		{"cached files make way", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "cg/a/memory.max": "5000\n", "cg/a/memory.current": "4900\n",
			"cg/a/memory.stat": "anon 10\ninactive_file 2000\nactive_file 1000\n",
		}, 3100},
		{"cached files in version 1", map[string]string{
			"proc/self/cgroup": "4:memory:/a\n", "cg/memory/a/memory.limit_in_bytes": "5000\n", "cg/memory/a/memory.usage_in_bytes": "4900\n",
			"cg/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\n",
		}, 2100},
		{"the machine has less than the limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "cg/a/memory.max": "99000000\n", "cg/a/memory.current": "0\n",
		}, 8000 << 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := made(t, tt.files)
			assert.Equal(t, memory(filepath.Join(dir, "proc"), filepath.Join(dir, "cg")), tt.want)
		})
	}
}

// made is a directory with these files.
func made(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

func TestCores(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  int
	}{
		{"nothing is known", nil, 8},
		{"no limit", map[string]string{"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "max 100000\n"}, 8},
		{"a limit", map[string]string{"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "300000 100000\n"}, 3},
		{"a part of a core", map[string]string{"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "20000 100000\n"}, 1},
		{"one and a half", map[string]string{"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "150000 100000\n"}, 2},
		{"a limit above", map[string]string{"proc/self/cgroup": "0::/a/b\n", "cg/a/cpu.max": "200000 100000\n", "cg/a/b/cpu.max": "max 100000\n"}, 2},
		{"more than there are", map[string]string{"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "6400000 100000\n"}, 8},
		{"version 1", map[string]string{"proc/self/cgroup": "3:cpu,cpuacct:/a\n", "cg/cpu/a/cpu.cfs_quota_us": "400000\n", "cg/cpu/a/cpu.cfs_period_us": "100000\n"}, 4},
		{"version 1 without a limit", map[string]string{"proc/self/cgroup": "3:cpu:/a\n", "cg/cpu/a/cpu.cfs_quota_us": "-1\n", "cg/cpu/a/cpu.cfs_period_us": "100000\n"}, 8},
		{"version 1, another controller's", map[string]string{"proc/self/cgroup": "3:cpuset:/a\n", "cg/cpu/a/cpu.cfs_quota_us": "100000\n", "cg/cpu/a/cpu.cfs_period_us": "100000\n"}, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := made(t, tt.files)
			assert.Equal(t, cores(filepath.Join(dir, "proc"), filepath.Join(dir, "cg"), 8), tt.want)
		})
	}
}

func TestHere(t *testing.T) {
	t.Parallel()
	assert.Assert(t, Cores() >= 1)
	assert.Assert(t, Memory() > 1<<20)
}
