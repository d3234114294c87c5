package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	write(t, filepath.Join(b.base(), "etc/motd"), "the tree's\n", 0o644)
	write(t, filepath.Join(b.base(), "bin/dkms"), "#!/bin/sh\necho real\n", 0o755)
	before := contents(t, b.base())
	large := strings.Repeat("0123456789abcdef", 1<<14) // more than a pipe holds
	tests := []struct {
		name     string
		files    []File
		script   string
		want     string
		readOnly bool
	}{
		{
			"over a file",
			[]File{{Target: "/etc/motd", Content: []byte("given\n"), Mode: 0o640}},
			"cat /etc/motd; stat -c %a:%u /etc/motd", "given\n640:0\n", false,
		},
		{
			"a program",
			[]File{{Target: "/bin/dkms", Content: []byte("#!/bin/sh\necho stub $1\n"), Mode: 0o755, IfExists: true}},
			"dkms arg", "stub arg\n", true,
		},
		{
			"read-only",
			[]File{{Target: "/etc/motd", Content: []byte("given\n"), Mode: 0o666}},
			try("echo x >>/etc/motd", "rm /etc/motd"), "refused: echo x >>/etc/motd\nrefused: rm /etc/motd\n", false,
		},
		{
			"missing and not wanted",
			[]File{{Target: "/etc/gone", Content: []byte("x"), Mode: 0o644, IfExists: true}},
			"ls /etc/gone 2>/dev/null || echo none", "none\n", true,
		},
		{
			"there and wanted",
			[]File{{Target: "/etc/motd", Content: []byte("given\n"), Mode: 0o644, IfExists: true}},
			"cat /etc/motd", "given\n", false,
		},
		{
			"below /run",
			[]File{{Target: "/run/a/b/c", Content: []byte("given\n"), Mode: 0o600}},
			"cat /run/a/b/c; stat -c %a /run/a/b/c", "given\n600\n", true,
		},
		{
			"empty",
			[]File{{Target: "/etc/motd", Mode: 0o644}},
			"stat -c %s /etc/motd", "0\n", false,
		},
		{
			"large",
			[]File{{Target: "/etc/motd", Content: []byte(large), Mode: 0o644}},
			"cat /etc/motd", large, true,
		},
		{
			"many",
			[]File{
				{Target: "/etc/motd", Content: []byte("first\n"), Mode: 0o644},
				{Target: "/etc/hosts", Content: []byte("second\n"), Mode: 0o644},
				{Target: "/etc/motd", Content: []byte("third\n"), Mode: 0o644},
			},
			"cat /etc/motd /etc/hosts", "third\nsecond\n", false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := b.sh(tt.script)
			if tt.readOnly {
				spec = readOnly(spec)
			}
			spec.Files = tt.files
			out, err := output(t.Context(), spec)
			assert.NilError(t, err)
			assert.Equal(t, out, tt.want)
			assert.DeepEqual(t, contents(t, b.base()), before)
			assert.DeepEqual(t, contents(t, b.upper()), map[string]string{})
		})
	}
}

func TestBinds(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	host := t.TempDir()
	write(t, filepath.Join(host, "dir/file"), "content\n", 0o644)
	write(t, filepath.Join(host, "single"), "single\n", 0o644)
	before := contents(t, host)

	script := "cat /var/file /etc/hosts /run/deep/dir/file /run/single; " +
		try("echo x >/var/new", "rm /var/file", "echo x >>/etc/hosts", "echo x >/run/deep/dir/new", "mount -o remount,rw,bind /var")
	spec := b.sh(script)
	spec.Binds = []Bind{
		{Source: host + "/dir", Target: "/var"},
		{Source: host + "/single", Target: "/etc/hosts"},
		{Source: host + "/dir", Target: "/run/deep/dir"},
		{Source: host + "/single", Target: "/run/single"},
	}
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, `content
single
content
single
refused: echo x >/var/new
refused: rm /var/file
refused: echo x >>/etc/hosts
refused: echo x >/run/deep/dir/new
refused: mount -o remount,rw,bind /var
`)
	assert.DeepEqual(t, contents(t, host), before)
	assert.DeepEqual(t, contents(t, b.upper()), map[string]string{})

	for i := range spec.Binds {
		spec.Binds[i].Write = true
	}
	spec.Args = []string{"sh", "-ec", "echo new >/var/new; rm /var/file; echo more >>/etc/hosts; echo run >/run/deep/dir/run"}
	_, err = output(t.Context(), readOnly(spec))
	assert.NilError(t, err)
	assert.DeepEqual(t, contents(t, host), map[string]string{
		"dir": "drwxr-xr-x", "dir/new": "-rw-r--r-- new\n", "dir/run": "-rw-r--r-- run\n", "single": "-rw-r--r-- single\nmore\n",
	})
}

// With the host's root the programs that make a tree find theirs below /tmp.
func TestHostBinds(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	host := t.TempDir()
	spec := b.host("cat /tmp/settings; stat -c %a /tmp/settings; echo made >/tmp/base/file")
	spec.Binds = []Bind{{Source: host, Target: "/tmp/base", Write: true}}
	spec.Files = []File{{Target: "/tmp/settings", Content: []byte("given\n"), Mode: 0o600}}
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "given\n600\n")
	assert.DeepEqual(t, contents(t, host), map[string]string{"file": "-rw-r--r-- made\n"})
}

// A tree is foreign: its links lead to its own files, or are refused, but no
// mount and no file ever comes to be outside of it.
func TestLinksStayInTheTree(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		tree   func(t *testing.T, base, outside string)
		change func(s *Spec, outside string)
		want   string // output
		err    string
	}{
		{
			"resolv.conf leads to an absolute path outside",
			func(t *testing.T, base, outside string) {
				assert.NilError(t, os.Symlink(outside+"/victim", base+"/etc/resolv.conf"))
			},
			func(s *Spec, _ string) {
				s.Files = []File{{Target: "/etc/resolv.conf", Content: []byte("given\n"), Mode: 0o644, IfExists: true}}
			}, "none\n", "",
		},
		{
			"the same, and it must be there",
			func(t *testing.T, base, outside string) {
				assert.NilError(t, os.Symlink(outside+"/victim", base+"/etc/resolv.conf"))
			},
			func(s *Spec, _ string) {
				s.Files = []File{{Target: "/etc/resolv.conf", Content: []byte("given\n"), Mode: 0o644}}
			}, "", "/etc/resolv.conf: no such file",
		},
		{
			"the network's resolv.conf",
			func(t *testing.T, base, outside string) {
				assert.NilError(t, os.Symlink("../../../../../../../.."+outside+"/victim", base+"/etc/resolv.conf"))
			},
			func(s *Spec, _ string) { s.Network = true }, "none\n", "",
		},
		{
			"resolv.conf leads to a file of the tree",
			func(t *testing.T, base, _ string) {
				write(t, base+"/var/resolv", "old\n", 0o644)
				assert.NilError(t, os.Symlink("/var/resolv", base+"/etc/resolv.conf"))
			},
			func(s *Spec, _ string) {
				s.Files = []File{{Target: "/etc/resolv.conf", Content: []byte("given\n"), Mode: 0o644, IfExists: true}}
			}, "given\n", "",
		},
		{
			"a bind's target",
			func(t *testing.T, base, outside string) {
				assert.NilError(t, os.Symlink(outside, base+"/etc/link"))
				assert.NilError(t, os.MkdirAll(base+outside, 0o755)) // so that it can be found
			},
			func(s *Spec, outside string) {
				s.Binds = []Bind{{Source: filepath.Dir(outside) + "/source", Target: "/etc/link", Write: true}}
				s.Args = []string{"sh", "-c", "echo x >/etc/link/new; ls " + outside}
			}, "new\n", "",
		},
		{"/dev is a link", linked("dev"), nil, "", "/dev: too many levels of symbolic links"},
		{"/run is a link", linked("run"), nil, "", "/run: too many levels of symbolic links"},
		{"/proc is a link", linked("proc"), nil, "", "/proc: too many levels of symbolic links"},
		{"/sys is a link", linked("sys"), nil, "", "/sys: too many levels of symbolic links"},
		{
			"/tmp is a link, the root read-only", linked("tmp"),
			func(s *Spec, _ string) { *s = readOnly(*s) },
			"", "/tmp: too many levels of symbolic links",
		},
		{
			"/tmp is a link, a target below it", linked("tmp"),
			func(s *Spec, _ string) { s.Files = []File{{Target: "/tmp/made", Content: []byte("x"), Mode: 0o644}} },
			"", "open in the tree /tmp/made",
		},
		{
			"/dev is a file",
			func(t *testing.T, base, _ string) {
				assert.NilError(t, os.Remove(base+"/dev"))
				write(t, base+"/dev", "", 0o644)
			},
			nil, "", "cannot mount tmpfs on /dev",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t)
			outside := filepath.Join(b.dir, "outside")
			write(t, outside+"/victim", "untouched\n", 0o644)
			assert.NilError(t, os.Mkdir(b.dir+"/source", 0o755))
			tt.tree(t, b.base(), outside)
			spec := b.sh("cat /etc/resolv.conf 2>/dev/null || echo none")
			if tt.change != nil {
				tt.change(&spec, outside)
			}
			out, err := output(t.Context(), spec)
			assert.DeepEqual(t, contents(t, outside), map[string]string{"victim": "-rw-r--r-- untouched\n"})
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.Equal(t, out, tt.want)
		})
	}
}

// linked puts a link to the directory outside in place of a directory of the
// tree. The same path leads somewhere in the tree, too.
func linked(name string) func(*testing.T, string, string) {
	return func(t *testing.T, base, outside string) {
		assert.NilError(t, os.Remove(filepath.Join(base, name)))
		assert.NilError(t, os.Symlink(outside, filepath.Join(base, name)))
		if !strings.HasPrefix(outside, "/"+name+"/") {
			assert.NilError(t, os.MkdirAll(base+outside, 0o755))
		}
	}
}

// Where a layer lies must not matter: mount options have characters of their own.
func TestLayersOfAnyName(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	odd := filepath.Join(b.dir, `a:b,c d\e=f`)
	assert.NilError(t, os.Rename(b.base(), odd))
	spec := b.sh("echo x >/etc/new; cat /etc/layer*")
	spec.Root.Layers = nil
	for i := range 40 {
		dir := filepath.Join(b.dir, strings.Repeat("long-name-", 20), string(rune('a'+i)))
		write(t, filepath.Join(dir, "etc/layer"), string(rune('a'+i)), 0o644)
		write(t, filepath.Join(dir, "etc/layer-"+string(rune('a'+i))), "", 0o644)
		spec.Root.Layers = append(spec.Root.Layers, dir)
	}
	spec.Root.Layers = append(spec.Root.Layers, odd)
	spec.Root.Upper = filepath.Join(b.dir, "up:per")
	assert.NilError(t, os.Rename(b.upper(), spec.Root.Upper))
	out, err := output(t.Context(), spec)
	assert.NilError(t, err)
	assert.Equal(t, out, "a") // the topmost
	info, err := os.Stat(filepath.Join(spec.Root.Upper, "etc/new"))
	assert.NilError(t, err)
	assert.Equal(t, info.Mode(), fs.FileMode(0o644))
}
