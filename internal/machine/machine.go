// Package machine says how much of the machine there is for this process.
package machine

import (
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Cores is how many cores this process may keep busy: those of its CPU affinity, and
// no more than the bandwidth of its control groups allows (cpu.max, or
// cpu.cfs_quota_us). The runtime knows both.
func Cores() int { return runtime.GOMAXPROCS(0) }

// Memory is how many bytes there are for this process and its children: what the
// kernel thinks can be had without swapping (MemAvailable of proc(5)), and no more than
// the limits of its control groups leave. It is 0 where neither is known.
func Memory() int64 { return memory("/proc", "/sys/fs/cgroup") }

func memory(proc, cgroups string) int64 {
	free := int64(math.MaxInt64)
	info, _ := os.ReadFile(filepath.Join(proc, "meminfo"))
	for line := range strings.Lines(string(info)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			free = kib << 10
		}
	}
	groups, _ := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path, cgroups(7)
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch fields[1] {
		case "": // version 2
			free = min(free, groupMemory(cgroups, fields[2], "memory.max", "memory.current", ""))
		case "memory":
			free = min(free, groupMemory(filepath.Join(cgroups, "memory"), fields[2], "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
		}
	}
	if free == math.MaxInt64 {
		return 0
	}
	return free
}

// groupMemory is what the limits of a control group and of those above it leave.
// Cached files count as usage there, and make way.
func groupMemory(root, group, limitFile, usageFile, prefix string) int64 {
	free := int64(math.MaxInt64)
	for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
		limit, limitErr := readNumber(filepath.Join(root, dir, limitFile)) // not a number: no limit
		usage, usageErr := readNumber(filepath.Join(root, dir, usageFile))
		if limitErr == nil && usageErr == nil {
			free = min(free, max(0, limit-usage+cachedFiles(filepath.Join(root, dir, "memory.stat"), prefix)))
		}
		if dir == "/" {
			return free
		}
	}
}

func cachedFiles(stat, prefix string) (sum int64) {
	text, _ := os.ReadFile(stat)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == prefix+"active_file" || name == prefix+"inactive_file" {
			n, _ := strconv.ParseInt(value, 10, 64)
			sum += n
		}
	}
	return sum
}

func readNumber(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
