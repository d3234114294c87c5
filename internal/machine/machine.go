// Package machine says how much of the machine there is for this process.
package machine

import (
	"fmt"
	"iter"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Cores is how many cores this process may keep busy: those of its CPU affinity, and
// no more than the bandwidth of its control groups allows (cpu.max, or
// cpu.cfs_quota_us), rounded up.
func Cores() int { return cores("/proc", "/sys/fs/cgroup", runtime.GOMAXPROCS(0)) }

// The runtime knows of these limits, too, but never goes below two for a bandwidth.
func cores(proc, cgroups string, most int) int {
	for dir, version := range groupsOf(proc, cgroups, "cpu") {
		var quota, period int64
		if version == 2 {
			text, _ := os.ReadFile(filepath.Join(dir, "cpu.max"))
			if _, err := fmt.Sscan(string(text), &quota, &period); err != nil { // max: no limit
				continue
			}
		} else {
			quota, _ = readNumber(filepath.Join(dir, "cpu.cfs_quota_us")) // -1: no limit
			period, _ = readNumber(filepath.Join(dir, "cpu.cfs_period_us"))
		}
		if quota > 0 && period > 0 {
			most = min(most, int((quota+period-1)/period))
		}
	}
	return max(1, most)
}

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
	for dir, version := range groupsOf(proc, cgroups, "memory") {
		limitFile, usageFile, prefix := "memory.max", "memory.current", ""
		if version == 1 {
			limitFile, usageFile, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
		}
		limit, limitErr := readNumber(filepath.Join(dir, limitFile)) // not a number: no limit
		usage, usageErr := readNumber(filepath.Join(dir, usageFile))
		if limitErr == nil && usageErr == nil {
			// Cached files count as usage there, and make way.
			free = min(free, max(0, limit-usage+cachedFiles(filepath.Join(dir, "memory.stat"), prefix)))
		}
	}
	if free == math.MaxInt64 {
		return 0
	}
	return free
}

// groupsOf are the directories of this process's control group for a controller and of
// those above it, each with the version of control groups, cgroups(7).
func groupsOf(proc, cgroups, controller string) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		groups, _ := os.ReadFile(filepath.Join(proc, "self/cgroup"))
		for line := range strings.Lines(string(groups)) {
			// hierarchy:controllers:path
			fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(fields) != 3 {
				continue
			}
			top, version := cgroups, 2
			if fields[1] != "" {
				if !slices.Contains(strings.Split(fields[1], ","), controller) {
					continue
				}
				top, version = filepath.Join(cgroups, controller), 1
			}
			for group := path.Clean("/" + fields[2]); ; group = path.Dir(group) {
				if !yield(filepath.Join(top, group), version) {
					return
				}
				if group == "/" {
					break
				}
			}
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
