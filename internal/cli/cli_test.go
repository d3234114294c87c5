package cli

import (
	"bytes"
	"context"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/state"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// roleVar makes the test binary one of the programs below instead of running
// the tests.
const roleVar = "CLI_TEST_ROLE"

func TestMain(m *testing.M) {
	if p, ok := roles[os.Getenv(roleVar)]; ok {
		Main(p)
	}
	os.Exit(m.Run())
}

// A call is what one run of a program saw and did.
type call struct {
	ran, passed bool
	doc         state.Document
	operands    []string
	flags       flags
}

type flags struct {
	OutDir          string
	Packages, Repos List
	Timeout         time.Duration
	Keep            bool
}

// recorder is a program with flags of every kind, that notes what it is called
// with, then calls run.
func recorder(c *call, run func(context.Context, *Session) error) Program {
	note := func(s *Session) {
		c.doc, c.operands = *s.Doc, s.Operands
	}
	return Program{
		Name: "recorder", Manual: "\nNotes what it gets.\n",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&c.flags.OutDir, "out-dir", "", "`directory` for the results (required)")
			fs.Var(&c.flags.Packages, "dkms", "`package` to note")
			fs.Var(&c.flags.Repos, "repo", "`repository` to note")
			fs.DurationVar(&c.flags.Timeout, "timeout", 30*time.Minute, "`time` that it may take")
			fs.BoolVar(&c.flags.Keep, "keep", false, "keep it")
		},
		Run: func(ctx context.Context, s *Session) error {
			c.ran = true
			note(s)
			if run == nil {
				return nil
			}
			return run(ctx, s)
		},
		Pass: func(_ context.Context, s *Session) error {
			c.passed = true
			note(s)
			return nil
		},
	}
}

// A result is what a run of a program gave.
type result struct {
	code           int
	stdout, stderr string
}

// document reads what the program handed on.
func (r result) document(t testing.TB) *state.Document {
	t.Helper()
	doc, err := state.Parse([]byte(r.stdout))
	assert.NilError(t, err, "%s", r.stderr)
	return doc
}

const empty = `{"version":1}`

// run runs p with a pipe as its stdin.
func run(t testing.TB, p Program, stdin string, args ...string) result {
	t.Helper()
	r, w, err := os.Pipe()
	assert.NilError(t, err)
	defer r.Close()
	go func() {
		_, _ = io.WriteString(w, stdin)
		w.Close()
	}()
	var stdout, stderr bytes.Buffer
	code := Run(p, args, r, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// closed is a stdin that nobody may read.
func closed(t testing.TB) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	assert.NilError(t, err)
	assert.NilError(t, w.Close())
	assert.NilError(t, r.Close())
	return r
}

func encode(t testing.TB, doc *state.Document) string {
	t.Helper()
	d := *doc // which is shared, and Encode sets its version
	raw, err := d.Encode()
	assert.NilError(t, err)
	return string(raw)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-h"}, {"--help"}, {"-help"}, {"--keep", "-h", "--bogus"}} {
		var c call
		p := recorder(&c, nil)
		p.Check = func([]string) error { return errors.New("checked") }
		var stdout, stderr bytes.Buffer
		code := Run(p, args, closed(t), &stdout, &stderr)
		assert.Equal(t, code, 0, "%v", args)
		assert.Equal(t, stderr.String(), "")
		assert.Equal(t, stdout.String(), `usage: recorder [flags] <document >document

Notes what it gets.

Flags (most also from the environment, as DKMS2BIN_NAME):
  --check
        only check the flags and what they name on this host, and print those that are set as a file for --config
  --config file
        file with one flag and its value on a line, without the dashes
  --dkms package...
        package to note
  --keep
        keep it
  --out-dir directory
        directory for the results (required)
  --repo repository...
        repository to note
  --timeout time
        time that it may take (default 30m)
  --version
        print the version and exit

Exit status: 0 all done; 1 an error is recorded in the document; 2 wrong usage or
unusable document; 3 done, but some modules failed, files were left out of the
index, or an audit found something wrong; 130 interrupted.
`)
		assert.Assert(t, !c.ran)
	}
	first := run(t, Program{Name: "first", Starts: true, Operands: "DIR..."}, "", "-h")
	assert.Assert(t, strings.HasPrefix(first.stdout, "usage: first [flags] [DIR...] >document\n"), first.stdout)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	var c call
	var stdout, stderr bytes.Buffer
	code := Run(recorder(&c, nil), []string{"--version"}, closed(t), &stdout, &stderr)
	assert.Equal(t, code, 0)
	assert.Equal(t, stderr.String(), "")
	name, version, ok := strings.Cut(strings.TrimSuffix(stdout.String(), "\n"), " ")
	assert.Assert(t, ok && name == "recorder" && version != "" && !strings.ContainsAny(version, " \n"), stdout.String())
	assert.Assert(t, !c.ran)
}

// Wrong usage is told, and recorded in the document that is passed on.
func TestWrongUsage(t *testing.T) {
	t.Parallel()
	hinted := diag.WithHint(errors.New("it is missing"), "make it")
	tests := []struct {
		name    string
		args    []string
		check   error
		message string
		hint    string
	}{
		{"unknown flag", []string{"--bogus"}, nil, "bogus", "--help lists all flags"},
		{"one that looks like a list", []string{"--bogus", "a", "b"}, nil, "bogus", "--help lists all flags"},
		{"no value", []string{"--out-dir"}, nil, "-out-dir", "--help lists all flags"},
		{"empty value of a list", []string{"--dkms", ""}, nil, "empty value", "--help lists all flags"},
		{"no time", []string{"--timeout", "soon"}, nil, `--timeout "soon": not a time such as 90s, 30m or 168h`, "--help lists all flags"},
		{"no unit", []string{"--timeout=5"}, nil, `--timeout "5": not a time such as 90s, 30m or 168h`, "--help lists all flags"},
		{"wrong boolean", []string{"--keep=maybe"}, nil, `--keep "maybe": neither true nor false`, "--help lists all flags"},
		{"operand", []string{"dir"}, nil, `unexpected operand "dir"`, "--help lists all flags"},
		{"no such configuration", []string{"--config", "/nowhere/file"}, nil, "/nowhere/file: no such file or directory", "--help lists all flags"},
		{"found by the check", nil, errors.New("cannot be"), "cannot be", "--help lists all flags"},
		{"with its own hint", nil, hinted, "it is missing", "make it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c call
			p := recorder(&c, nil)
			p.Check = func([]string) error { return tt.check }
			before := &state.Document{Version: 1, Minor: state.Minor, Packages: []state.Package{{Request: "kept"}}, Builds: []state.Build{{Status: state.Failed}}}
			res := run(t, p, encode(t, before), tt.args...)
			assert.Equal(t, res.code, 2, res.stderr)
			assert.Assert(t, strings.HasPrefix(res.stderr, "recorder: error: "), res.stderr)
			assert.Equal(t, strings.Count(res.stderr, tt.message), 1, res.stderr)
			assert.Equal(t, strings.Count(res.stderr, "\n"), 2, res.stderr)
			assert.Assert(t, strings.HasSuffix(res.stderr, "\nrecorder: hint: "+tt.hint+"\n"), res.stderr)
			doc := res.document(t)
			assert.Equal(t, doc.Error.Stage, "recorder")
			assert.Equal(t, doc.Error.Kind, state.KindUsage)
			assert.Equal(t, doc.Error.Hint, tt.hint)
			assert.Assert(t, strings.Contains(doc.Error.Message, tt.message), doc.Error.Message)
			doc.Error = nil
			assert.DeepEqual(t, doc, before)
			assert.Assert(t, !c.ran && !c.passed)
		})
	}
	t.Run("of the first stage", func(t *testing.T) {
		t.Parallel()
		var c call
		p := recorder(&c, nil)
		p.Starts = true
		var stdout, stderr bytes.Buffer
		code := Run(p, []string{"--bogus"}, closed(t), &stdout, &stderr)
		assert.Equal(t, code, 2)
		assert.Equal(t, result{stdout: stdout.String()}.document(t).Error.Kind, state.KindUsage)
		assert.Assert(t, !c.ran)
	})
}

// A stage at the end of a pipe says at once what is wrong, not when the hour of
// the stages before it is over.
func TestWrongUsageIsToldBeforeStdinIsRead(t *testing.T) {
	t.Parallel()
	stdinR, stdinW, err := os.Pipe()
	assert.NilError(t, err)
	defer stdinR.Close()
	stderrR, stderrW, err := os.Pipe()
	assert.NilError(t, err)
	defer stderrR.Close()
	var c call
	var stdout bytes.Buffer
	code := make(chan int)
	go func() {
		code <- Run(recorder(&c, nil), []string{"--bogus"}, stdinR, &stdout, stderrW)
		stderrW.Close()
	}()
	buf := make([]byte, 1024)
	n, err := stderrR.Read(buf)
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(buf[:n]), "bogus"), "%s", buf[:n])
	select {
	case c := <-code:
		t.Fatalf("it ended with %d without its document", c)
	case <-time.After(50 * time.Millisecond):
	}
	_, err = io.WriteString(stdinW, `{"version":1,"packages":[{"request":"kept"}]}`)
	assert.NilError(t, err)
	assert.NilError(t, stdinW.Close())
	assert.Equal(t, <-code, 2)
	doc := result{stdout: stdout.String()}.document(t)
	assert.Equal(t, doc.Packages[0].Request, "kept")
	assert.Equal(t, doc.Error.Kind, state.KindUsage)
}

func TestUnusableStdin(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, stdin, want string }{
		{"empty", "", "standard input is empty: the stage before wrote no document"},
		{"blank", "\n\n", "standard input is empty"},
		{"two documents", empty + empty, "more than one"},
		{"truncated", `{"version":1,"tree":{`, "not a dkms2bin document"},
		{"foreign", `{"name":"x"}`, "not a dkms2bin document: it has no version"},
		{"newer", `{"version":2}`, "the document has version 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c call
			res := run(t, recorder(&c, nil), tt.stdin)
			assert.Equal(t, res.code, 2)
			assert.Equal(t, res.stdout, "")
			assert.Assert(t, strings.HasPrefix(res.stderr, "recorder: error: ") && strings.Contains(res.stderr, tt.want), res.stderr)
			assert.Assert(t, !c.ran && !c.passed)

			// Wrong flags outweigh it.
			res = run(t, recorder(&c, nil), tt.stdin, "--bogus")
			assert.Equal(t, res.code, 2)
			assert.Equal(t, res.stdout, "")
			assert.Assert(t, strings.Contains(res.stderr, "bogus") && !strings.Contains(res.stderr, tt.want), res.stderr)
		})
	}
}

func TestStdinIsNotRead(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Program){
		"first stage": func(p *Program) { p.Starts = true },
		"standalone": func(p *Program) {
			p.Operands = "DIR..."
			p.Standalone = func(operands []string) bool { return len(operands) > 0 }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c call
			p := recorder(&c, func(_ context.Context, s *Session) error {
				s.Doc.Packages = []state.Package{{Request: "made"}}
				return nil
			})
			change(&p)
			var args []string
			if p.Operands != "" {
				args = []string{"one", "two"}
			}
			var stdout, stderr bytes.Buffer
			code := Run(p, args, closed(t), &stdout, &stderr)
			assert.Equal(t, code, 0, stderr.String())
			assert.DeepEqual(t, result{stdout: stdout.String()}.document(t), &state.Document{Version: 1, Minor: state.Minor, Packages: []state.Package{{Request: "made"}}})
			assert.DeepEqual(t, c.operands, args)
		})
	}
	t.Run("without operands it is", func(t *testing.T) {
		t.Parallel()
		var c call
		p := recorder(&c, nil)
		p.Operands, p.Standalone = "DIR", func(operands []string) bool { return len(operands) > 0 }
		assert.Equal(t, run(t, p, "").code, 2)
		assert.Equal(t, run(t, p, empty).code, 0)
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	other := &state.Error{Stage: "mkchroot", Kind: state.KindFailed, Message: "before"}
	own := &state.Error{Stage: "recorder", Kind: state.KindInterrupted, Message: "the last time"}
	tests := []struct {
		name   string
		before state.Document
		run    func(context.Context, *Session) error
		after  state.Document // but for the version
		code   int
		ran    bool
		stderr string
	}{
		{
			name: "success",
			run: func(_ context.Context, s *Session) error {
				s.Doc.Packages = append(s.Doc.Packages, state.Package{Name: "b"})
				return nil
			},
			before: state.Document{Packages: []state.Package{{Name: "a"}}},
			after:  state.Document{Packages: []state.Package{{Name: "a"}, {Name: "b"}}},
			ran:    true,
		},
		{
			name: "failure, with what was done before it",
			run: func(_ context.Context, s *Session) error {
				s.Doc.Tree = &state.Tree{Path: "/nowhere/at/all"}
				return diag.WithHint(errors.New("the disk is full"), "buy another")
			},
			after: state.Document{
				Tree:  &state.Tree{Path: "/nowhere/at/all", Repositories: []state.Repository{}},
				Error: &state.Error{Stage: "recorder", Kind: state.KindFailed, Message: "the disk is full", Hint: "buy another"},
			},
			code: 1, ran: true,
			stderr: "recorder: error: the disk is full\nrecorder: hint: buy another\n",
		},
		{
			name: "a document that it cannot work on",
			run: func(context.Context, *Session) error {
				return fmt.Errorf("cannot begin: %w", Usagef("no tree in %s", "it"))
			},
			after:  state.Document{Error: &state.Error{Stage: "recorder", Kind: state.KindUsage, Message: "cannot begin: no tree in it"}},
			code:   2,
			ran:    true,
			stderr: "recorder: error: cannot begin: no tree in it\n",
		},
		{
			name:  "several errors, which are one line of the document",
			run:   func(context.Context, *Session) error { return errors.Join(errors.New("one"), errors.New("two")) },
			after: state.Document{Error: &state.Error{Stage: "recorder", Kind: state.KindFailed, Message: "one; two"}},
			code:  1, ran: true,
			stderr: "recorder: error: one\ntwo\n",
		},
		{
			name: "failed modules",
			run: func(_ context.Context, s *Session) error {
				s.Doc.Builds = []state.Build{{Status: state.Built}, {Status: state.Failed}}
				return nil
			},
			after: state.Document{Builds: []state.Build{{Status: state.Built}, {Status: state.Failed}}},
			code:  3, ran: true,
		},
		{
			name:   "failed modules of a stage before",
			before: state.Document{Builds: []state.Build{{Status: state.Failed}}},
			after:  state.Document{Builds: []state.Build{{Status: state.Failed}}},
			code:   3, ran: true,
		},
		{
			name:   "the error of another stage is passed on",
			before: state.Document{Error: other, Packages: []state.Package{{Name: "a"}}},
			run:    func(context.Context, *Session) error { return errors.New("not reached") },
			after:  state.Document{Error: other, Packages: []state.Package{{Name: "a"}}},
			code:   1,
		},
		{
			name:   "the interruption of another stage",
			before: state.Document{Error: &state.Error{Stage: "mkchroot", Kind: state.KindInterrupted}},
			after:  state.Document{Error: &state.Error{Stage: "mkchroot", Kind: state.KindInterrupted}},
			code:   130,
		},
		{
			name:   "the own error is cleared",
			before: state.Document{Error: own, Packages: []state.Package{{Name: "a"}}},
			after:  state.Document{Packages: []state.Package{{Name: "a"}}},
			ran:    true,
		},
		{
			name:   "and replaced",
			before: state.Document{Error: own},
			run:    func(context.Context, *Session) error { return errors.New("again") },
			after:  state.Document{Error: &state.Error{Stage: "recorder", Kind: state.KindFailed, Message: "again"}},
			code:   1, ran: true,
			stderr: "recorder: error: again\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c call
			res := run(t, recorder(&c, tt.run), encode(t, &tt.before))
			assert.Equal(t, res.code, tt.code)
			tt.after.Version, tt.after.Minor = state.Version, state.Minor
			assert.DeepEqual(t, res.document(t), &tt.after)
			assert.Equal(t, c.ran, tt.ran)
			assert.Equal(t, c.passed, !tt.ran)
			assert.Equal(t, res.stderr, tt.stderr)
		})
	}
}

// What an earlier stage left unfinished must not be forgotten: that stage's
// rerun needs to know, and a later stage must not work on it.
func TestEarlierErrorIsKept(t *testing.T) {
	t.Parallel()
	other := &state.Error{Stage: "mkchroot", Kind: state.KindFailed, Message: "before"}
	before := &state.Document{Error: other}
	tests := []struct {
		name   string
		args   []string
		pass   error
		stderr string
	}{
		{"wrong flags", []string{"--bogus"}, nil, "bogus"},
		{"it cannot be passed on", nil, errors.New("cannot save the logs"), "recorder: error: cannot save the logs\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c call
			p := recorder(&c, nil)
			p.Pass = func(context.Context, *Session) error { return tt.pass }
			res := run(t, p, encode(t, before), tt.args...)
			assert.Equal(t, res.code, 1)
			assert.DeepEqual(t, res.document(t).Error, other)
			assert.Assert(t, strings.Contains(res.stderr, tt.stderr), res.stderr)
			assert.Assert(t, !c.ran)
		})
	}
}

func TestWithoutPass(t *testing.T) {
	t.Parallel()
	var c call
	p := recorder(&c, nil)
	p.Pass = nil
	res := run(t, p, `{"version":1,"error":{"stage":"x","kind":"failed","message":"m"}}`)
	assert.Equal(t, res.code, 1)
	assert.Equal(t, res.document(t).Error.Stage, "x")
	assert.Assert(t, !c.ran)
}

func TestSilent(t *testing.T) {
	t.Parallel()
	var c call
	silent := func(err error) func(context.Context, *Session) error {
		return func(_ context.Context, s *Session) error {
			s.Silent = true
			return err
		}
	}
	res := run(t, recorder(&c, silent(nil)), empty)
	assert.Equal(t, res, result{})
	res = run(t, recorder(&c, silent(Usagef("no such build"))), empty)
	assert.Equal(t, res, result{code: 2, stderr: "recorder: error: no such build\n"})
}

func TestCheckOnly(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args  []string
		check error
		code  int
	}{
		{[]string{"--check"}, nil, 0},
		{[]string{"--check"}, errors.New("it is missing"), 2},
		{[]string{"--check", "--bogus"}, nil, 2},
	} {
		var c call
		p := recorder(&c, nil)
		p.Check = func([]string) error { return tt.check }
		var stdout, stderr bytes.Buffer
		code := Run(p, tt.args, closed(t), &stdout, &stderr)
		assert.Equal(t, code, tt.code, "%v", tt.args)
		assert.Equal(t, stdout.String(), "")
		assert.Equal(t, stderr.Len() > 0, tt.code != 0, stderr.String())
		assert.Assert(t, !c.ran)
	}
}

// What a run needs besides right flags is looked at only when it is asked for.
func TestCheckOfAFreshRun(t *testing.T) {
	t.Parallel()
	var c call
	p := recorder(&c, nil)
	p.Fresh = func(msg *Messenger) error {
		msg.Warn("it grows old")
		return Required("out-dir", c.flags.OutDir)
	}
	res := run(t, p, "", "--check")
	assert.Equal(t, res, result{code: 2, stderr: "recorder: warning: it grows old\nrecorder: error: --out-dir is required\n"})
	res = run(t, p, "", "--check", "--out-dir", "D")
	assert.Equal(t, res, result{stdout: "out-dir D\n", stderr: "recorder: warning: it grows old\n"})
	c.flags = flags{}
	assert.Equal(t, run(t, p, empty).code, 0)
	assert.Assert(t, c.ran)
}

func TestTerminalAsStdin(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--bogus"}} {
		var c call
		_, slave := terminal(t)
		var stdout, stderr bytes.Buffer
		code := make(chan int, 1)
		go func() { code <- Run(recorder(&c, nil), args, slave, &stdout, &stderr) }()
		select {
		case got := <-code:
			assert.Equal(t, got, 2)
		case <-time.After(5 * time.Second):
			t.Fatal("it waits for the terminal")
		}
		assert.Equal(t, stdout.String(), "")
		want := "recorder: error: standard input is a terminal"
		if args != nil {
			want = "bogus"
		}
		assert.Assert(t, strings.Contains(stderr.String(), want), stderr.String())
		assert.Assert(t, !c.ran)
	}
}

// terminal gives both ends of a new pseudo terminal, pts(4).
func terminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	assert.NilError(t, err)
	t.Cleanup(func() { master.Close() })
	assert.NilError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	assert.NilError(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	assert.NilError(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// The copy is what is left when the document gets lost on its way.
func TestCopy(t *testing.T) {
	t.Parallel()
	tree := func(t *testing.T) *state.Document {
		dir := t.TempDir()
		assert.NilError(t, os.Mkdir(filepath.Join(dir, "documents"), 0o755))
		assert.NilError(t, os.WriteFile(filepath.Join(dir, "dkms2bin-tree"), nil, 0o644))
		return &state.Document{Version: 1, Minor: state.Minor, Tree: &state.Tree{Path: dir, Repositories: []state.Repository{}}}
	}
	copies := func(t *testing.T, doc *state.Document) []string {
		found, err := filepath.Glob(filepath.Join(doc.Tree.Path, "documents", "*"))
		assert.NilError(t, err)
		return found
	}
	t.Run("is the document", func(t *testing.T) {
		t.Parallel()
		doc := tree(t)
		var c call
		var path string
		res := run(t, recorder(&c, func(_ context.Context, s *Session) error {
			path = s.Copy()
			s.Doc.Packages = []state.Package{{Name: "a"}}
			return errors.New("failed")
		}), encode(t, doc))
		assert.Equal(t, res.code, 1)
		assert.DeepEqual(t, copies(t, doc), []string{path})
		content, err := os.ReadFile(path)
		assert.NilError(t, err)
		assert.Equal(t, string(content), res.stdout)
		info, err := os.Stat(path)
		assert.NilError(t, err)
		assert.Equal(t, info.Mode().Perm(), os.FileMode(0o644))
	})
	t.Run("stdout cannot be written", func(t *testing.T) {
		t.Parallel()
		doc := tree(t)
		r, w, err := os.Pipe()
		assert.NilError(t, err)
		assert.NilError(t, r.Close())
		defer w.Close()
		in, err := os.Open(writeFile(t, encode(t, doc)))
		assert.NilError(t, err)
		defer in.Close()
		var c call
		var stderr bytes.Buffer
		code := Run(recorder(&c, nil), nil, in, w, &stderr)
		assert.Equal(t, code, 1)
		found := copies(t, doc)
		assert.Equal(t, len(found), 1)
		assert.Assert(t, strings.HasPrefix(stderr.String(), "recorder: error: cannot hand the document on: "), stderr.String())
		assert.Assert(t, strings.HasSuffix(stderr.String(), "broken pipe\nrecorder: hint: a copy of it is "+found[0]+"\n"), stderr.String())
		content, err := os.ReadFile(found[0])
		assert.NilError(t, err)
		assert.Equal(t, string(content), encode(t, doc))
	})
	t.Run("no copy of a removed tree", func(t *testing.T) {
		t.Parallel()
		doc := tree(t)
		doc.Tree.Removed = true
		var c call
		assert.Equal(t, run(t, recorder(&c, nil), encode(t, doc)).code, 0)
		assert.Equal(t, len(copies(t, doc)), 0)
	})
	t.Run("nor of a tree that is gone", func(t *testing.T) {
		t.Parallel()
		doc := &state.Document{Tree: &state.Tree{Path: filepath.Join(t.TempDir(), "gone")}}
		var c call
		res := run(t, recorder(&c, nil), encode(t, doc))
		assert.Equal(t, res.code, 0)
		assert.Equal(t, res.stderr, "")
		_, err := os.Stat(doc.Tree.Path)
		assert.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("nor in what is no tree", func(t *testing.T) {
		t.Parallel()
		doc := tree(t)
		assert.NilError(t, os.Remove(filepath.Join(doc.Tree.Path, "dkms2bin-tree")))
		var c call
		res := run(t, recorder(&c, nil), encode(t, doc))
		assert.Equal(t, res.code, 0)
		assert.Equal(t, res.stderr, "")
		assert.Equal(t, len(copies(t, doc)), 0)
	})
	t.Run("it cannot be kept", func(t *testing.T) {
		t.Parallel()
		doc := &state.Document{Tree: &state.Tree{Path: t.TempDir()}}
		assert.NilError(t, os.WriteFile(filepath.Join(doc.Tree.Path, "documents"), nil, 0o644))
		assert.NilError(t, os.WriteFile(filepath.Join(doc.Tree.Path, "dkms2bin-tree"), nil, 0o644))
		var c call
		res := run(t, recorder(&c, nil), encode(t, doc))
		assert.Equal(t, res.code, 0)
		assert.Assert(t, strings.HasPrefix(res.stderr, "recorder: warning: cannot keep a copy of the document: "), res.stderr)
		assert.Assert(t, res.stdout != "")
	})
}

func writeFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	assert.NilError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func TestErrorsAreUsage(t *testing.T) {
	t.Parallel()
	assert.NilError(t, Required("out-dir", "x"))
	err := Required("out-dir", "")
	assert.Error(t, err, "--out-dir is required")
	var usage *UsageError
	assert.Assert(t, errors.As(err, &usage))
	assert.ErrorIs(t, Usagef("no: %w", os.ErrNotExist), os.ErrNotExist)
}
