// Bench is what scripts/bench does not do in shell: it makes packages, and
// measures commands.
//
//	bench DIR N [SUFFIX]            makes N packages in DIR
//	bench -measure NAME -- COMMAND  prints NAME, seconds, those of all cores, and
//	                                peak memory in KiB, of the largest process
//	bench -peak FILE -- COMMAND     runs COMMAND, and adds its name and its own peak
//	                                memory in KiB to FILE
package main

import (
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 3 && args[0] == "-measure" {
		return measure(args[1], args[3:])
	}
	if len(args) > 3 && args[0] == "-peak" {
		return peak(args[1], args[3:])
	}
	if len(args) < 2 {
		return errors.New("usage: bench DIR N [SUFFIX]")
	}
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	suffix := ""
	if len(args) > 2 {
		suffix = "-again" + args[2]
	}
	workers := runtime.GOMAXPROCS(0)
	failed := make(chan error, workers)
	for w := range workers {
		go func() {
			var err error
			for i := w; i < count && err == nil; i += workers {
				err = pack(args[0], i, suffix)
			}
			failed <- err
		}()
	}
	for range workers {
		err = errors.Join(err, <-failed)
	}
	return err
}

// measure runs a command and prints what it took.
func measure(name string, argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	seconds := time.Since(start).Seconds()
	if err != nil {
		return fmt.Errorf("%q: %w\n%s", argv, err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return errors.New("no resource usage")
	}
	cores := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	_, err = fmt.Fprintf(os.Stdout, "%s %.4f %.4f %d\n", name, seconds, cores.Seconds(), usage.Maxrss)
	return err
}

// peak runs a program in place of itself, and looks now and then how large it has
// become: what the kernel tells in the end is about its children as well.
func peak(to string, argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	most, pause := 0, time.Millisecond
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s)
		case <-time.After(pause): // seldom, where it takes long: this costs time, too
			most, pause = max(most, highWater(cmd.Process.Pid)), min(2*pause, 100*time.Millisecond)
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return err
			}
			out, err := os.OpenFile(to, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, filepath.Base(argv[0]), most)
			if err := errors.Join(err, out.Close()); err != nil {
				return err
			}
			os.Exit(cmd.ProcessState.ExitCode())
		}
	}
}

// highWater is the peak memory of a process in KiB, or 0 when it is gone.
func highWater(pid int) (kib int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	return 0
}

// Most packages of kernel modules have 16 to 512 KiB.
const smallest, doublings = 16 << 10, 5

// pack makes a package with a control file of 1 KiB and a module that does not
// compress. Sizes are spread evenly over their logarithm.
func pack(dir string, i int, suffix string) (err error) {
	name := fmt.Sprintf("made%d%s-modules-6.1.0-%d-amd64", i%100, suffix, i/100)
	c := deb.Stanza{
		{Name: "Package", Value: name},
		{Name: "Version", Value: fmt.Sprintf("1.%d-1+6.1.%d.1", i%100, i/100)},
		{Name: "Architecture", Value: "amd64"},
		{Name: "Maintainer", Value: "A B <ab@example.org>"},
		{Name: "Depends", Value: fmt.Sprintf("linux-image-6.1.0-%d-amd64 | linux-image-6.1.0-%[1]d-amd64-unsigned", i/100)},
		{Name: "Section", Value: "kernel"},
		{Name: "Description", Value: fmt.Sprintf("made package %d", i) +
			strings.Repeat(fmt.Sprintf("\n of some length, number %d, as descriptions of packages are", i*7919), 12)},
	}
	size := int64(smallest * math.Exp2(doublings*float64(i*61%100)/100))
	f, err := os.Create(filepath.Join(dir, deb.Filename(c)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return deb.Write(f, deb.Package{Control: c, Time: time.Unix(1_700_000_000, 0), Files: []deb.File{{
		Path: "/lib/modules/made/" + name + ".ko", Size: size,
		Open: func() (io.ReadCloser, error) {
			content := rand.NewChaCha8(sha256.Sum256([]byte(name)))
			return io.NopCloser(io.LimitReader(content, size)), nil
		},
	}}})
}
