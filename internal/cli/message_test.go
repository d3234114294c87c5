package cli

import (
	"bytes"
	"dkms2bin/internal/diag"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

func TestMessages(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	m := NewMessenger("dkmsbuild", &b)
	m.Announce("creating %s", "chroot environment")
	m.Info("the chroot environment is kept in %s", "/x")
	m.Warn("%s: %d%%", "i40e-dkms", 50)
	m.Hint("the whole log is %s", "/log")
	m.Error(errors.New("it failed: 100%d"))
	m.Error(fmt.Errorf("cannot begin: %w", diag.WithHint(errors.New("no tree"), "make one")))
	step := m.Step("installing %s package", "i40e-dkms")
	n, err := step.Write([]byte("what runs\n"))
	assert.NilError(t, err)
	assert.Equal(t, n, 10)
	step.Done("OK")
	step.Done("FAILED") // only the first counts
	m.Step("installing hpsa-dkms package").Done("FAILED")
	quiet := m.Wait("creating chroot environment")
	_, _ = quiet.Write([]byte("what runs\n"))
	quiet.Done("OK")
	assert.Equal(t, b.String(), `... creating chroot environment
dkmsbuild: the chroot environment is kept in /x
dkmsbuild: warning: i40e-dkms: 50%
dkmsbuild: hint: the whole log is /log
dkmsbuild: error: it failed: 100%d
dkmsbuild: error: cannot begin: no tree
dkmsbuild: hint: make one
... installing i40e-dkms package .. OK
... installing hpsa-dkms package .. FAILED
`)
}

// Foreign texts, such as the output of compilers, must not drive the terminal.
func TestControlCharactersAreLeftOut(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	m := NewMessenger("p", &b)
	for _, text := range []string{
		"\x1b[31mred\x1b[0m", "\x1b]0;title\a", "a\rb\bc\x00d\x7f", "\u009b2J", "\xff\xfe\x9b", "tab\there", "ünïcode ✓ 漢字",
	} {
		m.Warn("%s", text)
		m.Error(errors.New(text))
		m.Step("%s", text).Done("OK")
		m.Announce("%s", text)
	}
	assert.Equal(t, b.String(), strings.Join([]string{
		every("[31mred[0m"), every("]0;title"), every("abcd"), every("2J"), every(""), every("tab\there"), every("ünïcode ✓ 漢字"),
	}, ""))
}

func every(text string) string {
	return "p: warning: " + text + "\np: error: " + text + "\n... " + text + " .. OK\n... " + text + "\n"
}

// A screen is a pseudo terminal, and all that was written to it.
type screen struct {
	master, slave *os.File
	mu            sync.Mutex
	text          string
}

func newScreen(t *testing.T, columns uint16) *screen {
	t.Helper()
	s := &screen{}
	s.master, s.slave = terminal(t)
	assert.NilError(t, unix.IoctlSetWinsize(int(s.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}))
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := s.master.Read(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.text += string(buf[:n])
			s.mu.Unlock()
		}
	}()
	return s
}

// waitFor waits until text was written, and returns all.
func (s *screen) waitFor(t *testing.T, text string) string {
	t.Helper()
	for range 500 {
		s.mu.Lock()
		all := s.text
		s.mu.Unlock()
		if strings.Contains(all, text) {
			return all
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%q is not in %q", text, s.text)
	return ""
}

// visible is what the lines look like in the end.
func visible(t *testing.T, text string) []string {
	t.Helper()
	var lines []string
	for line := range strings.SplitSeq(text, "\r\n") {
		for {
			before, after, ok := strings.Cut(line, "\r\x1b[K")
			if !ok {
				break
			}
			assert.Assert(t, !strings.ContainsAny(before, "\n\r\x1b"), "%q", before)
			line = after
		}
		assert.Assert(t, !strings.ContainsAny(line, "\n\r\x1b"), "%q in %q", line, text)
		lines = append(lines, line)
	}
	return lines
}

func TestLiveLine(t *testing.T) {
	t.Parallel()
	s := newScreen(t, 60)
	m := NewMessenger("p", s.slave)
	step := m.Step("installing a package")
	s.waitFor(t, "... installing a package .. 0s")
	_, _ = step.Write([]byte("first\n  CC [M]\tfile.o\r\n\n"))
	s.waitFor(t, "s: CC [M] file.o")
	s.waitFor(t, ".. 1s: CC [M] file.o") // it lives
	_, _ = step.Write([]byte(strings.Repeat("long ", 100)))
	s.waitFor(t, "s: long long")
	_, _ = step.Write([]byte("\x1b[31mred\n"))
	s.waitFor(t, ": [31mred")
	m.Warn("in between")
	step.Done("OK")
	quiet := m.Wait("waiting")
	s.waitFor(t, "... waiting .. 0s")
	_, _ = quiet.Write([]byte("what was before\n"))
	quiet.Show("%s and %d more", "building", 2)
	s.waitFor(t, "... building and 2 more .. 1s\r")
	quiet.Done("OK")
	m.Announce("the end")
	all := s.waitFor(t, "... the end\r\n")
	assert.DeepEqual(t, visible(t, all), []string{"p: warning: in between", "... installing a package .. OK", "... the end", ""})
	for line := range strings.SplitSeq(strings.ReplaceAll(all, "\r\n", "\r\x1b[K"), "\r\x1b[K") {
		assert.Assert(t, len([]rune(line)) < 60, "%q is wider than the terminal", line)
	}

	// Nothing more is written once a step is done.
	time.Sleep(600 * time.Millisecond)
	assert.Equal(t, s.waitFor(t, "the end"), all)
}

func TestLiveLineOfForeignText(t *testing.T) {
	t.Parallel()
	s := newScreen(t, 80)
	m := NewMessenger("p", s.slave)
	step := m.Step("installing %s", "\x1b[31mred\nand\tmore")
	_, _ = step.Write([]byte("a\x1b[2Jb\n"))
	s.waitFor(t, "a[2Jb")
	step.Done("OK")
	all := s.waitFor(t, " .. OK\r\n")
	live, _, _ := strings.Cut(all, "\r\x1b[K")
	assert.Equal(t, live, "... installing [31mred and more .. 0s")
}

// Builds may run side by side.
func TestStepsAtTheSameTime(t *testing.T) {
	t.Parallel()
	s := newScreen(t, 80)
	m := NewMessenger("p", s.slave)
	first := m.Step("first")
	second := m.Step("second")
	s.waitFor(t, "... second .. 0s")
	first.Done("OK")
	second.Done("OK")
	all := s.waitFor(t, "... second .. OK\r\n")
	assert.Assert(t, strings.HasPrefix(all, "... first .. 0s\r\x1b[K... second .. 0s\r\x1b[K"), "%q", all)
	assert.DeepEqual(t, visible(t, all), []string{"... first .. OK", "... second .. OK", ""})
}

func TestMessagesFromSeveral(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	m := NewMessenger("p", &b)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			step := m.Step("a step")
			for range 50 {
				_, _ = step.Write([]byte("what runs\n"))
				m.Warn("a warning")
			}
			step.Done("OK")
		})
	}
	wg.Wait()
	assert.Equal(t, strings.Count(b.String(), "p: warning: a warning\n"), 400)
	assert.Equal(t, strings.Count(b.String(), "... a step .. OK\n"), 8)
	assert.Equal(t, strings.Count(b.String(), "\n"), 408)
}
