package apt

import (
	"bytes"
	"crypto/sha256"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// release is a Release file that lists one file.
func release(fields, name, content string) string {
	return fmt.Sprintf("%sArchitectures: amd64\nComponents: main\nDate: Sat, 01 Nov 2025 00:00:00 UTC\nSHA256:\n %x %d %s\n",
		fields, sha256.Sum256([]byte(content)), len(content), name)
}

// What apt 2.6.2 prints, shortened.
func TestReason(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, output, want string }{
		{"nothing", "", ""},
		{"success", "Reading package lists...\nW: Download is performed unsandboxed as root\n", ""},
		{
			"unmet dependencies", `Building dependency tree...
Some packages could not be installed. This may mean that you have
requested an impossible situation or if you are using the unstable
The following packages have unmet dependencies:
 needs : Depends: nothing-has-this (>= 2) but it is not installable
 newer : Depends: good (>= 9) but 1 is to be installed
E: Unable to correct problems, you have held broken packages.
`, "needs : Depends: nothing-has-this (>= 2) but it is not installable; newer : Depends: good (>= 9) but 1 is to be installed",
		},
		{"unknown package", "Building dependency tree...\nE: Unable to locate package nonsense\n", "Unable to locate package nonsense"},
		{
			"three unknown ones", "E: Unable to locate package nonsense1\nE: Unable to locate package nonsense2\nE: Unable to locate package nonsense3\n",
			"Unable to locate package nonsense1; Unable to locate package nonsense2",
		},
		{"unknown version", "E: Version '7' for 'good' was not found\n", "Version '7' for 'good' was not found"},
		{
			"404", `Err:1 http://127.0.0.1:8765 ./ good 1
  404  File not found [IP: 127.0.0.1 8765]
E: Failed to fetch http://127.0.0.1:8765/./good_1_all.deb  404  File not found [IP: 127.0.0.1 8765]
E: Some files failed to download
`, "Failed to fetch http://127.0.0.1:8765/./good_1_all.deb  404  File not found [IP: 127.0.0.1 8765]",
		},
		{
			"hash mismatch", `Get:1 http://127.0.0.1:8765 ./ good 1 [640 B]
Err:1 http://127.0.0.1:8765 ./ good 1
  File has unexpected size (642 != 640). Mirror sync in progress? [IP: 127.0.0.1 8765]
  Hashes of expected file:
   - SHA256:52bbf331ce4b5766b160dfaa534c71802ba1ff0256ae83f39a71cf6d3097b66b
E: Failed to fetch http://127.0.0.1:8765/./good_1_all.deb  File has unexpected size (642 != 640). Mirror sync in progress? [IP: 127.0.0.1 8765]
   Hashes of expected file:
    - SHA256:52bbf331ce4b5766b160dfaa534c71802ba1ff0256ae83f39a71cf6d3097b66b
E: Some files failed to download
`, "Failed to fetch http://127.0.0.1:8765/./good_1_all.deb  File has unexpected size (642 != 640). Mirror sync in progress? [IP: 127.0.0.1 8765]",
		},
		{
			"unreachable mirror", `Err:1 http://127.0.0.1:9 nosuite InRelease
  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
E: Failed to fetch http://127.0.0.1:9/dists/nosuite/InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
E: Some index files failed to download. They have been ignored, or old ones used instead.
`, "Failed to fetch http://127.0.0.1:9/dists/nosuite/InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)",
		},
		{
			"wrong keyring", `Err:1 http://127.0.0.1:8765 ./ InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 92E752B204AAC47C
Reading package lists...
W: GPG error: http://127.0.0.1:8765 ./ InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 92E752B204AAC47C
E: The repository 'http://127.0.0.1:8765 ./ InRelease' is not signed.
`, "GPG error: http://127.0.0.1:8765 ./ InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 92E752B204AAC47C",
		},
		{"not signed", "E: The repository 'http://127.0.0.1:8765 ./ Release' is not signed.\n", "The repository 'http://127.0.0.1:8765 ./ Release' is not signed."},
		{
			"the clock", "E: Release file for http://127.0.0.1:8765/./InRelease is not valid yet (invalid for another 3692d 1h 25min 25s). Updates for this repository will not be applied.\n",
			"Release file for http://127.0.0.1:8765/./InRelease is not valid yet (invalid for another 3692d 1h 25min 25s). Updates for this repository will not be applied.",
		},
		{
			"post-installation script", `Setting up bad (1) ...
building
dpkg: error processing package bad (--configure):
 installed bad package post-installation script subprocess returned error exit status 10
Errors were encountered while processing:
 bad
E: Sub-process /usr/bin/dpkg returned an error code (1)
`, "building (installed bad package post-installation script subprocess returned error exit status 10)",
		},
		{
			"a script that says nothing", `Setting up good (1) ...
all is well
Setting up bad (1) ...
dpkg: error processing package bad (--configure):
 installed bad package post-installation script subprocess returned error exit status 10
`, "installed bad package post-installation script subprocess returned error exit status 10",
		},
		{
			"a license that is not accepted", `debconf: delaying package configuration, since apt-utils is not installed
Selecting previously unselected package rvq-dkms.
(Reading database ... 14022 files and directories currently installed.)
Preparing to unpack /run/dkms2bin/given.deb ...
debconf: unable to initialize frontend: Dialog
debconf: (TERM is not set, so the dialog frontend is not usable.)
rvq: license not accepted, aborting
dpkg: error processing archive /run/dkms2bin/given.deb (--unpack):
 new rvq-dkms package pre-installation script subprocess returned error exit status 1
Errors were encountered while processing:
 /run/dkms2bin/given.deb
E: Sub-process /usr/bin/dpkg returned an error code (1)
`, "rvq: license not accepted, aborting (new rvq-dkms package pre-installation script subprocess returned error exit status 1)",
		},
		{
			"the words of stretch", `Setting up bad (1) ...
no
dpkg: error processing package bad (--configure):
 subprocess installed post-installation script was killed by signal (Killed)
E: Sub-process /usr/bin/dpkg returned an error code (1)
`, "no (subprocess installed post-installation script was killed by signal (Killed))",
		},
		{
			"the last lines of many, one like apt's", "Setting up bad (1) ...\none\ntwo\n\nthree\n10%\r99%\rfour\r\n\x1b[31mE: five\x1b[0m\a\n" +
				"dpkg: error processing package bad (--configure):\n installed bad package post-installation script subprocess returned error exit status 1\n",
			"three | four | five (installed bad package post-installation script subprocess returned error exit status 1)",
		},
		{
			"what is quoted already", "Setting up bad (1) ...\nE: no license\n" +
				"dpkg: error processing package bad (--configure):\n installed bad package post-installation script subprocess returned error exit status 1\n" +
				"E: Sub-process /usr/bin/dpkg returned an error code (1)\n",
			"no license (installed bad package post-installation script subprocess returned error exit status 1)",
		},
		{
			"a long line", "Setting up bad (1) ...\n" + strings.Repeat("x", 1000) + "the end\n" +
				"dpkg: error processing package bad (--configure):\n installed bad package post-installation script subprocess returned error exit status 1\n",
			"…" + strings.Repeat("x", 232) + "the end (installed bad package post-installation script subprocess returned error exit status 1)",
		},
		{
			"a file of two packages", `Unpacking clash (1) ...
dpkg: error processing archive /run/x/given.deb (--unpack):
 trying to overwrite '/usr/bin/make', which is also in package make 4.3-4.1
Errors were encountered while processing:
 /run/x/given.deb
E: Sub-process /usr/bin/dpkg returned an error code (1)
`, "trying to overwrite '/usr/bin/make', which is also in package make 4.3-4.1",
		},
		{"nothing better", "E: Sub-process /usr/bin/dpkg returned an error code (1)\n", "Sub-process /usr/bin/dpkg returned an error code (1)"},
		{"the same twice", "E: it is full\nE: it is full\n", "it is full"},
		{"not at the beginning of a line", "compiling: E: no\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, Reason(tt.output), tt.want)
		})
	}
}

func TestSimilar(t *testing.T) {
	t.Parallel()
	names := []string{"v4l2loopback-dkms", "v4l2loopback-utils", "bbswitch-dkms", "zfs-dkms", "i40e-dkms", "hpsa-dkms", "ddcci-dkms", "nvidia-kernel-dkms"}
	tests := []struct {
		want string
		n    int
		got  []string
	}{
		{"v4l2loopback-dkm", 3, []string{"v4l2loopback-dkms", "v4l2loopback-utils"}},
		{"v4l2lopback-dkms", 1, []string{"v4l2loopback-dkms"}},
		{"bswitch", 3, []string{"bbswitch-dkms"}}, // it contains it
		{"i40-dkms", 2, []string{"i40e-dkms"}},
		{"nothing-like-it-anywhere", 3, nil},
		{"zfs-dkms", 1, []string{"zfs-dkms"}},
		{"zfs-dkms", 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			got := Similar(tt.want, names, tt.n)
			assert.Equal(t, strings.Join(got, " "), strings.Join(tt.got, " "))
		})
	}
}

func TestDistance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		assert.Equal(t, distance(tt.a, tt.b), tt.want, "%s %s", tt.a, tt.b)
		assert.Equal(t, distance(tt.b, tt.a), tt.want, "%s %s", tt.b, tt.a)
	}
}

func TestSourceOf(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"":                "binary 1.0-1",
		"src":             "src 1.0-1",
		"src (2:3.0-1)":   "src 2:3.0-1",
		"linux (6.1.1-1)": "linux 6.1.1-1",
	} {
		stanza := deb.Stanza{{Name: "Package", Value: "binary"}, {Name: "Version", Value: "1.0-1"}}
		if source != "" {
			stanza = append(stanza, deb.Field{Name: "Source", Value: source})
		}
		name, version := SourceOf(stanza)
		assert.Equal(t, name+" "+version, want)
	}
}

func TestLimited(t *testing.T) {
	t.Parallel()
	var l limited
	line := bytes.Repeat([]byte("x"), 999)
	for range 5000 {
		n, err := l.Write(append(line, '\n'))
		assert.NilError(t, err)
		assert.Equal(t, n, 1000)
	}
	_, err := l.WriteString("the end")
	assert.NilError(t, err)
	assert.Assert(t, l.Len() <= 1<<20+1000, "%d", l.Len())
	assert.Assert(t, strings.HasSuffix(l.String(), "\nthe end"))
}

// inside runs the host's apt in a sandbox, with settings and lists of its own.
func inside(t *testing.T) (i Inside, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the tests of apt in a sandbox need root")
	}
	const seenAs = "/tmp/apt"
	dir, conf := aptHome(t, seenAs)
	mountpoint := t.TempDir()
	return Inside{Spec: sandbox.Spec{
		Root: sandbox.Root{Host: true}, Mountpoint: mountpoint,
		Env:   append(sandbox.DefaultEnv(), "APT_CONFIG="+seenAs+"/"+filepath.Base(conf)),
		Binds: []sandbox.Bind{{Source: dir, Target: seenAs, Write: true}},
	}}, dir
}

// pack describes a package of a repository that does not have it.
func pack(name, version, more string) string {
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\n%sFilename: pool/%s.deb\nSize: 4\nSHA256: %064d\nDescription: x\n\n", name, version, more, name, 1)
}

func TestInside(t *testing.T) {
	t.Parallel()
	i, dir := inside(t)
	var log bytes.Buffer
	i.Log = &log
	packages := pack("a-dkms", "1.0-1", "Depends: dkms\n") + pack("a-dkms", "1.0-1+deb12u1", "Source: a (1.0-1)\n") + pack("a-dkms", "1.0-1~bpo1", "") +
		pack("b-dkms", "2", "Depends: nothing-has-this\nProvides: virtual (= 2)\n") + pack("ab", "1", "Provides: other, virtual\n")
	writeFile(t, filepath.Join(dir, "repo/dists/one/main/binary-amd64/Packages"), packages)
	writeFile(t, filepath.Join(dir, "repo/dists/one/Release"), release("", "main/binary-amd64/Packages", packages))
	writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] file:/tmp/apt/repo one main\n")

	assert.NilError(t, i.Update(t.Context()))
	assert.Assert(t, strings.Contains(log.String(), "Reading package lists"), log.String())

	names, err := i.Names(t.Context())
	assert.NilError(t, err)
	assert.DeepEqual(t, names, []string{"a-dkms", "ab", "b-dkms"})

	found, err := i.Show(t.Context(), "a-dkms", "b-dkms", "no-such")
	assert.NilError(t, err)
	digest := fmt.Sprintf("%064d", 1)
	assert.DeepEqual(t, found, map[string][]Candidate{
		"a-dkms": {
			{Name: "a-dkms", Version: "1.0-1+deb12u1", Architecture: "amd64", Description: "x", SHA256: digest, Filename: "pool/a-dkms.deb", Source: "a", SourceVersion: "1.0-1"},
			{Name: "a-dkms", Version: "1.0-1", Architecture: "amd64", Depends: "dkms", Description: "x", SHA256: digest, Filename: "pool/a-dkms.deb", Source: "a-dkms", SourceVersion: "1.0-1"},
			{Name: "a-dkms", Version: "1.0-1~bpo1", Architecture: "amd64", Description: "x", SHA256: digest, Filename: "pool/a-dkms.deb", Source: "a-dkms", SourceVersion: "1.0-1~bpo1"},
		},
		"b-dkms": {{Name: "b-dkms", Version: "2", Architecture: "amd64", Depends: "nothing-has-this", Provides: "virtual (= 2)", Description: "x", SHA256: digest, Filename: "pool/b-dkms.deb", Source: "b-dkms", SourceVersion: "2"}},
	})
	none, err := i.Show(t.Context(), "no-such")
	assert.NilError(t, err)
	assert.Equal(t, len(none), 0)

	for name, want := range map[string]string{"virtual": "ab b-dkms", "a-dkms": "", "no-such": ""} {
		providers, err := i.Providers(t.Context(), name)
		assert.NilError(t, err)
		assert.Equal(t, strings.Join(providers, " "), want)
	}

	preferred, err := i.Preferred(t.Context(), "a-dkms", "b-dkms", "no-such")
	assert.NilError(t, err)
	assert.DeepEqual(t, preferred, map[string]string{"a-dkms": "1.0-1+deb12u1", "b-dkms": "2"})

	writeFile(t, filepath.Join(dir, "etc/preferences.d/pin"), "Package: a-dkms\nPin: version 1.0-1\nPin-Priority: 1001\n")
	preferred, err = i.Preferred(t.Context(), "a-dkms")
	assert.NilError(t, err)
	assert.DeepEqual(t, preferred, map[string]string{"a-dkms": "1.0-1"})

	var failure *Failure
	err = i.Install(t.Context(), "b-dkms")
	assert.Assert(t, errors.As(err, &failure), "%v", err)
	assert.ErrorContains(t, err, "b-dkms : Depends: nothing-has-this but it is not installable")
	var exit *sandbox.ExitError
	assert.Assert(t, errors.As(err, &exit))
	err = i.Install(t.Context(), "no-such")
	assert.Error(t, err, "Unable to locate package no-such")
}

func TestOutputLimited(t *testing.T) {
	t.Parallel()
	i, _ := inside(t)
	tests := []struct {
		name   string
		script string
		limit  int64
		want   string
		long   bool
	}{
		{"less", "printf 123", 4, "123", false},
		{"as much", "printf 1234", 4, "1234", false},
		{"more", "printf 12345", 4, "1234", true},
		{"for ever", "yes", 4, "y\ny\n", true},
		{"nothing allowed", "echo", 0, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := i.OutputLimited(t.Context(), tt.limit, "sh", "-c", tt.script)
			assert.Equal(t, string(out), tt.want)
			if tt.long {
				assert.Assert(t, errors.Is(err, ErrTooLong), "%v", err)
				assert.ErrorContains(t, err, fmt.Sprintf("its output is too long: more than %d bytes", tt.limit))
			} else {
				assert.NilError(t, err)
			}
		})
	}
	_, err := i.Output(t.Context(), "sh", "-c", "echo no >&2; exit 3")
	var exit *sandbox.ExitError
	assert.Assert(t, errors.As(err, &exit) && exit.Code == 3, "%v", err)
}

// Both reasons are in one line.
func TestInstallWithoutMirror(t *testing.T) {
	t.Parallel()
	i, dir := inside(t)
	packages := pack("a", "1", "")
	writeFile(t, filepath.Join(dir, "repo/dists/one/main/binary-amd64/Packages"), packages)
	writeFile(t, filepath.Join(dir, "repo/dists/one/Release"), release("", "main/binary-amd64/Packages", packages))
	writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] copy:/tmp/apt/repo one main\n")
	writeFile(t, filepath.Join(dir, "etc/apt.conf.d/retries"), "Acquire::Retries \"0\";\n")
	assert.NilError(t, i.Update(t.Context()))
	assert.NilError(t, os.RemoveAll(filepath.Join(dir, "repo/dists")))
	err := i.Install(t.Context(), "a")
	assert.ErrorContains(t, err, "pool/a.deb")
	assert.ErrorContains(t, err, "; ")
	assert.ErrorContains(t, err, "dists/one")
	assert.Assert(t, !strings.Contains(err.Error(), "\n"), "%v", err)
	var failure *Failure
	assert.Assert(t, errors.As(err, &failure))
}

// Half an update is a failure.
func TestUpdateFails(t *testing.T) {
	t.Parallel()
	i, dir := inside(t)
	// Nobody listens there once it is closed, not even in the network that
	// the host has.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	address := listener.Addr().String()
	assert.NilError(t, listener.Close())
	i.Spec.Env = append(i.Spec.Env, "no_proxy=127.0.0.1")
	packages := pack("a", "1", "")
	writeFile(t, filepath.Join(dir, "repo/dists/one/main/binary-amd64/Packages"), packages)
	writeFile(t, filepath.Join(dir, "repo/dists/one/Release"), release("", "main/binary-amd64/Packages", packages))
	writeFile(t, filepath.Join(dir, "etc/apt.conf.d/retries"), "Acquire::Retries \"0\";\n")
	for name, tt := range map[string]struct{ line, want string }{
		"unreachable": {"deb [trusted=yes] http://" + address + "/debian one main", "Failed to fetch http://" + address},
		"not signed":  {"deb file:/tmp/apt/repo one main", "The repository 'file:/tmp/apt/repo one Release' is not signed"},
		"gone":        {"deb [trusted=yes] file:/tmp/apt/gone one main", "Failed to fetch file:/tmp/apt/gone"},
	} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, filepath.Join(dir, "etc/sources.list"), "deb [trusted=yes] file:/tmp/apt/repo one main\n"+strings.Replace(tt.line, "repo one", "repo/. one", 1)+"\n")
			err := i.Update(t.Context())
			assert.ErrorContains(t, err, strings.Replace(tt.want, "repo one", "repo/. one", 1))
			var failure *Failure
			assert.Assert(t, errors.As(err, &failure))
		})
	}
}

func TestInstalled(t *testing.T) {
	t.Parallel()
	i, _ := inside(t)
	installed, err := i.Installed(t.Context())
	assert.NilError(t, err)
	assert.Assert(t, installed["dpkg"] != "")
	assert.Equal(t, installed["no-such-package"], "")
	owners, err := i.Owners(t.Context(), "/usr/bin/dpkg", "/usr/bin/dpkg-q*", "/no/such/*")
	assert.NilError(t, err)
	assert.DeepEqual(t, owners, []Owner{{"/usr/bin/dpkg", "dpkg"}, {"/usr/bin/dpkg-query", "dpkg"}})
	owners, err = i.Owners(t.Context(), "/no/such/*")
	assert.NilError(t, err)
	assert.Equal(t, len(owners), 0)
	files, err := i.Files(t.Context(), "dpkg")
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains("\n"+strings.Join(files, "\n")+"\n", "\n/usr/bin/dpkg\n"))
	_, err = i.Files(t.Context(), "no-such-package")
	assert.ErrorContains(t, err, "exit status 1")
}

// FuzzReason: what apt prints is foreign text in part. A reason is one line, and not
// without bound.
func FuzzReason(f *testing.F) {
	f.Add("E: Failed to fetch http://example.org/x  404  Not Found\nE: Unable to fetch some archives\n")
	f.Add("Setting up a (1) ...\n\x1b[1mbroken\r\ndpkg: error processing package a (--configure):\n installed a package post-installation script subprocess returned error exit status 1\n")
	f.Add("W: GPG error: http://example.org x InRelease: \nE: The repository 'x' is not signed.\n a : Depends: b but it is not installable\n")
	f.Fuzz(func(t *testing.T, output string) {
		got := Reason(output)
		assert.Assert(t, !strings.ContainsAny(got, "\n"), "%q", got)
		assert.Assert(t, got == strings.TrimSpace(got))
	})
}
