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
			dir := t.TempDir()
			for name, content := range tt.files {
				path := filepath.Join(dir, name)
				assert.NilError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
			}
			assert.Equal(t, memory(filepath.Join(dir, "proc"), filepath.Join(dir, "cg")), tt.want)
		})
	}
}

func TestHere(t *testing.T) {
	t.Parallel()
	assert.Assert(t, Cores() >= 1)
	assert.Assert(t, Memory() > 1<<20)
}
