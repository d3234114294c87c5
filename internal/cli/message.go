package cli

import (
	"dkms2bin/internal/diag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A Messenger writes what is for people. On a terminal a step that takes long
// shows that it lives; elsewhere there are whole plain lines only.
type Messenger struct {
	prefix string
	mu     sync.Mutex
	w      io.Writer
	fd     int // of the terminal, or -1
	live   *Step
}

// NewMessenger gives a messenger of the program called name.
func NewMessenger(name string, w io.Writer) *Messenger {
	m := &Messenger{prefix: name, w: w, fd: -1}
	if f, ok := w.(*os.File); ok && isTerminal(f.Fd()) {
		m.fd = int(f.Fd())
	}
	return m
}

func isTerminal(fd uintptr) bool {
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}

// clean keeps foreign text from driving the terminal, and logins to itself.
func clean(s string) string {
	s = diag.WithoutLogins(s)
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || (r < ' ' && r != '\n' && r != '\t') || (r >= 0x7f && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}

func (m *Messenger) line(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.erase()
	fmt.Fprintln(m.w, clean(fmt.Sprintf(format, args...)))
	m.draw()
}

// Info writes a line with the program's name.
func (m *Messenger) Info(format string, args ...any) {
	m.line("%s: %s", m.prefix, fmt.Sprintf(format, args...))
}

// Warn writes a warning.
func (m *Messenger) Warn(format string, args ...any) {
	m.line("%s: warning: %s", m.prefix, fmt.Sprintf(format, args...))
}

// Hint writes advice.
func (m *Messenger) Hint(format string, args ...any) {
	m.line("%s: hint: %s", m.prefix, fmt.Sprintf(format, args...))
}

// Error writes an error and the advice that it carries.
func (m *Messenger) Error(err error) {
	m.line("%s: error: %s", m.prefix, err)
	if hint := diag.Hint(err); hint != "" {
		m.Hint("%s", hint)
	}
}

// Announce writes the line of a step that has no outcome of its own.
func (m *Messenger) Announce(format string, args ...any) {
	m.line("... %s", fmt.Sprintf(format, args...))
}

// A Step is something that takes a while.
type Step struct {
	m     *Messenger
	text  string
	quiet bool // no line of its own in the end

	mu    sync.Mutex
	now   string
	start time.Time
	stop  chan struct{}
	done  sync.Once
}

// Step begins a step. Its line is written by Done, with the outcome.
func (m *Messenger) Step(format string, args ...any) *Step {
	return m.begin(&Step{text: fmt.Sprintf(format, args...)})
}

// Wait begins a step that leaves no line: Announce has written it already.
func (m *Messenger) Wait(format string, args ...any) *Step {
	return m.begin(&Step{text: fmt.Sprintf(format, args...), quiet: true})
}

func (m *Messenger) begin(s *Step) *Step {
	s.m, s.start, s.stop = m, time.Now(), make(chan struct{})
	if m.fd < 0 {
		return s
	}
	m.mu.Lock()
	m.erase()
	m.live = s
	m.draw()
	m.mu.Unlock()
	go func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				m.mu.Lock()
				if m.live == s {
					m.erase()
					m.draw()
				}
				m.mu.Unlock()
			}
		}
	}()
	return s
}

// Done ends the step with its outcome. Only the first call counts.
func (s *Step) Done(outcome string) {
	s.done.Do(func() {
		close(s.stop)
		s.m.mu.Lock()
		if s.m.live == s {
			s.m.erase()
			s.m.live = nil
		}
		s.m.mu.Unlock()
		if !s.quiet {
			s.m.line("... %s .. %s", s.text, outcome)
		}
	})
}

// Show says on a terminal that the step has come to something else.
func (s *Step) Show(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.now = fmt.Sprintf(format, args...), ""
}

// Write takes the output of what runs; its last line is shown on a terminal.
func (s *Step) Write(p []byte) (int, error) {
	lines := strings.FieldsFunc(string(p), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := len(lines) - 1; i >= 0; i-- {
		if text := strings.TrimSpace(clean(lines[i])); text != "" {
			s.mu.Lock()
			s.now = strings.ReplaceAll(text, "\t", " ")
			s.mu.Unlock()
			break
		}
	}
	return len(p), nil
}

// erase and draw are called with m.mu held.
func (m *Messenger) erase() {
	if m.live != nil && m.fd >= 0 {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}

func (m *Messenger) draw() {
	if m.live == nil || m.fd < 0 {
		return
	}
	s := m.live
	s.mu.Lock()
	what, now := s.text, s.now
	s.mu.Unlock()
	text := fmt.Sprintf("... %s .. %s", what, time.Since(s.start).Round(time.Second))
	if now != "" {
		text += ": " + now
	}
	width := 80
	if size, err := unix.IoctlGetWinsize(m.fd, unix.TIOCGWINSZ); err == nil && size.Col > 1 {
		width = int(size.Col)
	}
	text = strings.Join(strings.Fields(clean(text)), " ") // one line
	if runes := []rune(text); len(runes) >= width {
		text = string(runes[:width-1])
	}
	fmt.Fprint(m.w, text)
}
