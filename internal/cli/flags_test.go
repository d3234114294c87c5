package cli

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func TestFlags(t *testing.T) {
	tests := []struct {
		name     string
		args     []string
		env      map[string]string
		config   string // %s in args stands for its file
		want     flags
		operands []string
	}{
		{name: "defaults", want: flags{Timeout: 30 * time.Minute}},
		{
			name: "each kind", args: []string{"--out-dir", "D", "-timeout=1h", "--keep", "--dkms", "a"},
			want: flags{OutDir: "D", Timeout: time.Hour, Keep: true, Packages: List{"a"}},
		},
		{
			name: "a list takes several words", args: []string{"--dkms", "a", "b", "c", "--out-dir", "D"},
			want: flags{OutDir: "D", Timeout: 30 * time.Minute, Packages: List{"a", "b", "c"}},
		},
		{
			name: "and repeats", args: []string{"--dkms", "a", "--out-dir", "D", "--dkms", "b", "c"},
			want: flags{OutDir: "D", Timeout: 30 * time.Minute, Packages: List{"a", "b", "c"}},
		},
		{
			name: "with an equals sign", args: []string{"-dkms=a", "b", "--dkms=c=d", "--keep"},
			want: flags{Timeout: 30 * time.Minute, Packages: List{"a", "b", "c=d"}, Keep: true},
		},
		{
			name: "two lists", args: []string{"--dkms", "a", "b", "--repo", "deb uri ./", "deb uri2 ./", "--dkms", "c"},
			want: flags{Timeout: 30 * time.Minute, Packages: List{"a", "b", "c"}, Repos: List{"deb uri ./", "deb uri2 ./"}},
		},
		{
			name: "operands", args: []string{"--keep", "x", "--dkms", "-y"},
			want: flags{Timeout: 30 * time.Minute, Keep: true}, operands: []string{"x", "--dkms", "-y"},
		},
		{
			name: "two dashes end a list", args: []string{"--dkms", "a", "--", "x", "--keep"},
			want: flags{Timeout: 30 * time.Minute, Packages: List{"a"}}, operands: []string{"x", "--keep"},
		},
		{
			name: "a boolean has no further word", args: []string{"--dkms", "a", "--keep", "x"},
			want: flags{Timeout: 30 * time.Minute, Packages: List{"a"}, Keep: true}, operands: []string{"x"},
		},
		{
			name: "a value that looks like a flag", args: []string{"--out-dir", "--dkms", "--keep"},
			want: flags{Timeout: 30 * time.Minute, OutDir: "--dkms", Keep: true},
		},
		{
			name: "the environment", env: map[string]string{
				"DKMS2BIN_OUT_DIR": "E", "DKMS2BIN_TIMEOUT": "5m",
				"DKMS2BIN_KEEP": "true", "DKMS2BIN_VERSION": "1.2", // what is done once is not taken from here
				"DKMS2BIN_DKMS": "a\nb=1.0 c", "DKMS2BIN_UNKNOWN": "x", "OUT_DIR": "not ours",
			},
			want: flags{OutDir: "E", Timeout: 5 * time.Minute, Packages: List{"a", "b=1.0 c"}},
		},
		{
			name: "empty counts as unset", env: map[string]string{"DKMS2BIN_OUT_DIR": "", "DKMS2BIN_DKMS": ""},
			want: flags{Timeout: 30 * time.Minute},
		},
		{
			name: "flags before the environment", args: []string{"--out-dir", "D", "--dkms", "a"},
			env:  map[string]string{"DKMS2BIN_OUT_DIR": "E", "DKMS2BIN_DKMS": "x\ny"},
			want: flags{OutDir: "D", Timeout: 30 * time.Minute, Packages: List{"a"}},
		},
		{
			name: "a file", args: []string{"--config", "%s"},
			config: "# settings\nout-dir F\ntimeout 1m\n\ndkms a\ndkms b # one more\nrepo deb [trusted=yes] http://example.org ./\nkeep\n",
			want: flags{
				OutDir: "F", Timeout: time.Minute, Packages: List{"a", "b"}, Keep: true,
				Repos: List{"deb [trusted=yes] http://example.org ./"},
			},
		},
		{
			name: "keys of other programs", args: []string{"--config", "%s"},
			config: "kver 6.1.0-56-amd64\nolder-than 24h\nwork-dir /x\nout-dir F\n",
			want:   flags{OutDir: "F", Timeout: 30 * time.Minute},
		},
		{
			name: "the environment before the file", args: []string{"--config", "%s"}, env: map[string]string{"DKMS2BIN_OUT_DIR": "E", "DKMS2BIN_DKMS": "x"},
			config: "out-dir F\ntimeout 1m\ndkms a\ndkms b\n",
			want:   flags{OutDir: "E", Timeout: time.Minute, Packages: List{"x"}},
		},
		{
			name: "flags before both", args: []string{"--config=%s", "--out-dir", "D", "--dkms", "a", "b"},
			env: map[string]string{"DKMS2BIN_OUT_DIR": "E"}, config: "out-dir F\ntimeout 1m\ndkms c\n",
			want: flags{OutDir: "D", Timeout: time.Minute, Packages: List{"a", "b"}},
		},
		{
			name: "the file from the environment", env: map[string]string{"DKMS2BIN_CONFIG": "%s"}, config: "out-dir F\n",
			want: flags{OutDir: "F", Timeout: 30 * time.Minute},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := writeFile(t, tt.config)
			for k, v := range tt.env {
				t.Setenv(k, strings.ReplaceAll(v, "%s", file))
			}
			for i := range tt.args {
				tt.args[i] = strings.ReplaceAll(tt.args[i], "%s", file)
			}
			var c call
			p := recorder(&c, nil)
			p.Operands = "WORD..."
			res := run(t, p, empty, tt.args...)
			assert.Equal(t, res.code, 0, res.stderr)
			assert.DeepEqual(t, c.flags, tt.want)
			assert.Equal(t, strings.Join(c.operands, "|"), strings.Join(tt.operands, "|"))
		})
	}
}

func TestWrongSettings(t *testing.T) {
	tests := []struct {
		name   string
		env    map[string]string
		config string
		want   string
	}{
		{"unknown key", nil, "out-dirs F\n", "out-dirs"},
		{"wrong value", nil, "timeout soon\n", "timeout"},
		{"a flag with its dashes", nil, "--out-dir F\n", "--out-dir"},
		{"wrong value in the environment", map[string]string{"DKMS2BIN_TIMEOUT": "soon"}, "", "DKMS2BIN_TIMEOUT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			var c call
			res := run(t, recorder(&c, nil), empty, "--config", writeFile(t, tt.config))
			assert.Equal(t, res.code, 2)
			assert.Assert(t, strings.HasPrefix(res.stderr, "recorder: error: ") && strings.Contains(res.stderr, tt.want), res.stderr)
			assert.Assert(t, !c.ran)
		})
	}
}

// What --check prints is, read again, what the flags were, wherever they came from.
func TestSettings(t *testing.T) {
	t.Setenv("DKMS2BIN_REPO", "deb uri ./\ndeb [trusted=yes] uri2 ./,1050")
	var c call
	p := recorder(&c, nil)
	p.Check = func([]string) error {
		c.flags.OutDir = "/abs/" + c.flags.OutDir
		return nil
	}
	config := writeFile(t, "timeout 1h\nout-dir elsewhere\n")
	res := run(t, p, "", "--check", "--config", config, "--dkms", "b", "./a dir", "--keep", "--out-dir", "D")
	assert.Equal(t, res, result{stdout: "dkms b\ndkms ./a dir\nkeep true\nout-dir /abs/D\nrepo deb uri ./\nrepo deb [trusted=yes] uri2 ./,1050\ntimeout 1h0m0s\n"})

	t.Setenv("DKMS2BIN_REPO", "")
	want := c.flags
	c = call{}
	p.Check = nil
	assert.Equal(t, run(t, p, empty, "--config", writeFile(t, res.stdout)).code, 0)
	assert.DeepEqual(t, c.flags, want)

	for _, value := range []string{"x #y", " x", "x\n", ""} {
		c = call{}
		res := run(t, recorder(&c, nil), "", "--check", "--out-dir", value)
		assert.Equal(t, res, result{stdout: "# out-dir: its value cannot stand in a file\n"})
	}
}

// Other programs' keys are passed over in a shared configuration file, so this
// package has to know them all.
func TestKeysAreTheFlagsOfAllPrograms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "dkms2bin/cmd/...")
	out, err := build.CombinedOutput()
	assert.NilError(t, err, "%s", out)
	programs, err := os.ReadDir(dir)
	assert.NilError(t, err)
	var names, found []string
	flagLine := regexp.MustCompile(`(?m)^  --([a-z-]+)`)
	for _, p := range programs {
		names = append(names, p.Name())
		help, err := exec.CommandContext(t.Context(), filepath.Join(dir, p.Name()), "-h").Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s -h: %v: %s", p.Name(), err, exit.Stderr)
		}
		assert.NilError(t, err)
		for _, m := range flagLine.FindAllStringSubmatch(string(help), -1) {
			if !slices.Contains([]string{"check", "config", "version"}, m[1]) {
				found = append(found, m[1])
			}
		}
	}
	assert.DeepEqual(t, names, []string{"debextract", "dkmsbuild", "mkchroot", "repoindex", "rmchroot"})
	slices.Sort(found)
	assert.DeepEqual(t, keys, slices.Compact(found))
}

func TestList(t *testing.T) {
	t.Parallel()
	var l List
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.Var(&l, "dkms", "")
	assert.NilError(t, fs.Parse([]string{"-dkms", "a", "-dkms", "b"}))
	assert.Equal(t, l.String(), "a b")
}

func TestNoNumber(t *testing.T) {
	t.Parallel()
	p := Program{Name: "first", Starts: true, Flags: func(fs *flag.FlagSet) { fs.Int("jobs", 0, "") }}
	for value, says := range map[string]string{"all": "not a whole number", "1.5": "not a whole number", "99999999999999999999": "value out of range"} {
		res := run(t, p, "", "--jobs", value)
		assert.Equal(t, res.code, 2)
		assert.Assert(t, strings.HasPrefix(res.stderr, "first: error: --jobs \""+value+"\": "+says+"\n"), res.stderr)
	}
}
