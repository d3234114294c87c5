//go:build e2e

package e2e

import (
	"dkms2bin/internal/repo"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/state"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// sameDebs says that a run made the packages that another one made, byte for byte.
func sameDebs(t *testing.T, got, want string) {
	t.Helper()
	assert.Assert(t, len(debFiles(t, want)) > 0)
	assert.DeepEqual(t, packageDigests(t, got), packageDigests(t, want))
}

// meansModules is a source directory whose build changes its tree as packages do.
func meansModules(t *testing.T) string {
	files := goodModule("mine")
	files["dkms.conf"] += "POST_BUILD=\"change.sh\"\n"
	files["change.sh"] = "#!/bin/sh\nrm -r /usr/share/doc/dkms /etc/hosts; mkdir /usr/share/doc/dkms; mv /usr/share/perl5 /usr/share/perl6; ln -sf dash /bin/bash.2\n"
	dir := source(t, "mine", files)
	assert.NilError(t, os.Chmod(filepath.Join(dir, "change.sh"), 0o755))
	return dir
}

// onOverlay is a directory on an overlay, as in a container whose root is one.
func onOverlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		assert.NilError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	point := filepath.Join(dir, "merged")
	assert.NilError(t, unix.Mount("overlay", point, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	t.Cleanup(func() { assert.NilError(t, unix.Unmount(point, 0)) })
	inside := filepath.Join(point, "inside")
	assert.NilError(t, os.Mkdir(inside, 0o755))
	return inside
}

// TestWithoutOverlay: in a work directory that lies on an overlay, as in a container
// whose root is one, the same packages come by way of memory, and with too little of it
// from plain copies; so they do where only the cache lies there.
func TestWithoutOverlay(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly: layers are made again and again; the sandbox's tests have all but real packages")
	}
	tree, base := sharedTree(t), sharedBase(t)
	kver, module := shared.doc.Kernels[0].Release, meansModules(t)
	want := t.TempDir()
	r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", "bbswitch-dkms", module}}.run(t).mustExit(t, state.ExitDone)
	command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", want}}.run(t).mustExit(t, state.ExitDone)

	overlay, disk := onOverlay(t), t.TempDir()
	inCache := []string{"--cache-dir", filepath.Join(overlay, "cache")}
	for _, row := range []struct {
		name, work string
		cache      []string
		memory     int64 // limit; 0: none
	}{
		{"memory, no cache", overlay, []string{"--no-cache"}, 0},
		{"memory, cache", overlay, inCache, 0},
		{"memory, from the cache", overlay, inCache, 0},
		{"the cache alone", disk, inCache, 0},
		{"the tree alone", overlay, []string{"--cache-dir", filepath.Join(disk, "cache")}, 0},
		{"copies", overlay, []string{"--no-cache"}, 900 << 20},
		{"copies, from a cache of memory's", overlay, inCache, 900 << 20},
	} {
		t.Run(row.name, func(t *testing.T) {
			out := t.TempDir()
			run := func(c command) result {
				if row.memory == 0 {
					return c.run(t).mustExit(t, state.ExitDone)
				}
				grouped := inMemoryGroup(t, row.memory, c)
				if grouped == nil {
					t.Skip("no memory control group can be made here")
				}
				return grouped.run(t).mustExit(t, state.ExitDone)
			}
			made := run(command{name: "mkchroot", args: append([]string{"--work-dir", row.work, "--kver", kver, "--base", base}, row.cache...)})
			made.mustSay(t, "that lies on an overlay itself, as in a container: put it on a volume")
			if row.memory == 0 {
				made.mustSay(t, "what is written goes to memory first")
				assert.Equal(t, made.doc.Tree.Copies, "")
			} else {
				made.mustSay(t, "roots are put together by copying", "nor can memory take what is written: of the ")
				assert.Assert(t, strings.Contains(made.doc.Tree.Copies, "overlay"))
			}
			built := run(command{name: "dkmsbuild", stdin: made.raw, args: []string{"--dkms", "bbswitch-dkms", module}})
			got := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, state.ExitDone)
			sameDebs(t, out, want)
			command{name: "rmchroot", stdin: got.raw}.run(t).mustExit(t, state.ExitDone)
			noTrees(t, row.work)
		})
	}
	for _, where := range []string{overlay, disk} {
		command{name: "rmchroot", args: []string{"--cache", "--cache-dir", filepath.Join(where, "cache")}}.run(t).mustExit(t, 0)
	}
}

// TestInPlace: in a container without any mounts, its own root is the tree. Here it is
// a chroot, in which no user namespace can be made.
func TestInPlace(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly: a base system of its own")
	}
	tree := sharedTree(t)
	kver, module := shared.doc.Kernels[0].Release, source(t, "mine", goodModule("mine"))
	want := t.TempDir()
	r := command{name: "dkmsbuild", stdin: tree, args: []string{"--kver", kver, "--dkms", "bbswitch-dkms", module}}.run(t).mustExit(t, state.ExitDone)
	command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", want}}.run(t).mustExit(t, state.ExitDone)

	container := filepath.Join(t.TempDir(), "container")
	mustRun(t, "cp", "-a", sharedBase(t), container)
	mustRun(t, "cp", "-r", bin, scripts, container+"/opt/")
	mustRun(t, "cp", "-a", module, container+"/opt/mine")
	mustRun(t, "cp", "/etc/resolv.conf", "/etc/hosts", container+"/etc/")
	for target, source := range map[string]string{"proc": "/proc", "dev": "/dev"} {
		point := filepath.Join(container, target)
		assert.NilError(t, unix.Mount(source, point, "", unix.MS_BIND|unix.MS_REC, ""))
		t.Cleanup(func() { assert.NilError(t, unix.Unmount(point, unix.MNT_DETACH)) })
	}
	inside := func(script string) (string, int) {
		cmd := exec.CommandContext(t.Context(), "chroot", container, "/usr/bin/env", "-i", "PATH=/opt/bin:/opt/scripts:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-euc", script)
		text, _ := cmd.CombinedOutput()
		t.Logf("%s: exit %d\n%s", script, cmd.ProcessState.ExitCode(), text)
		return string(text), cmd.ProcessState.ExitCode()
	}
	says := func(script string, code int, texts ...string) string {
		t.Helper()
		text, got := inside(script)
		assert.Equal(t, got, code, text)
		for _, want := range texts {
			assert.Assert(t, strings.Contains(text, want), "it does not say %q:\n%s", want, text)
		}
		return text
	}
	// What is missing, and what to do.
	says("mkchroot --no-cache --kver "+kver+" >/1.json || { code=$?; rmchroot </1.json >/dev/null || :; exit $code; }", 1, "cannot make a user namespace", "the kernel refuses it inside a chroot", "mkchroot --in-place")
	says("mkchroot --in-place --base /nowhere", 2, "--base")
	front := "dkms2bin --in-place --dkms bbswitch-dkms /opt/mine --kver " + kver + " --index --out-dir "
	says(front+"/out", 0, "warning: NO ISOLATION", "throw the container away")
	sameDebs(t, filepath.Join(container, "out"), want)
	// Once more, in the same container, stage by stage; a failed build and a daemon do no harm.
	says(`mkdir /opt/bad; cp /opt/mine/* /opt/bad/ 2>/dev/null || :; sed -i "s/mine/bad/g" /opt/bad/dkms.conf; echo 'MAKE[0]="setsid sleep 271828 & false"' >>/opt/bad/dkms.conf
		mkchroot --in-place --kver `+kver+` >/1.json
		dkmsbuild --dkms bbswitch-dkms /opt/mine /opt/bad </1.json >/2.json || [ $? = 3 ]
		debextract --out-dir /out2 </2.json >/3.json || [ $? = 3 ]
		rmchroot </3.json >/4.json || [ $? = 3 ]
		grep -q '"in_place": true' /4.json
		[ -e /usr/sbin/dkms ] && dpkg --verify dkms && ! ls /usr/sbin/*.dkms2bin-saved /run/dkms2bin/* 2>/dev/null`, 0, "FAILED", "what was installed and built in this system's own root stays")
	sameDebs(t, filepath.Join(container, "out2"), want)
	assert.DeepEqual(t, processes("sleep\x00271828"), []string(nil))
	trees, err := os.ReadDir(filepath.Join(container, "var/cache/dkms2bin/trees"))
	assert.NilError(t, err)
	assert.Equal(t, len(trees), 0)
}

// TestInPlaceIsForContainers: nobody's machine is taken for a container.
func TestInPlaceIsForContainers(t *testing.T) {
	t.Parallel()
	var fs unix.Statfs_t
	assert.NilError(t, unix.Statfs("/", &fs))
	if _, err := os.Stat("/.dockerenv"); err == nil || fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skip("this is a container")
	}
	work := t.TempDir()
	command{name: "mkchroot", args: []string{"--in-place", "--work-dir", work}}.run(t).mustExit(t, state.ExitUsage).
		mustSay(t, "this seems to be none", "touch /.dkms2bin-disposable")
}

// onFUSE mounts a directory once more by way of FUSE, which, as NFS, takes no upper
// layers, and keeps what is removed while it is open.
func onFUSE(t *testing.T, options ...string) string {
	t.Helper()
	store, point := t.TempDir(), t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bindfs", append(options, "-f", store, point)...)
	assert.NilError(t, cmd.Start(), "the package bindfs is needed")
	t.Cleanup(func() {
		assert.NilError(t, unix.Unmount(point, 0))
		_ = cmd.Wait()
	})
	for range 1000 {
		var fs unix.Statfs_t
		assert.NilError(t, unix.Statfs(point, &fs))
		if fs.Type == unix.FUSE_SUPER_MAGIC {
			return point
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("bindfs mounts nothing")
	return ""
}

// TestOnFUSE: work directory, cache and output directory may be on a file system that
// takes no upper layers, with extended attributes or without.
func TestOnFUSE(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("this kernel has no FUSE")
	}
	dir := onFUSE(t)
	tree, err := rootfs.Create(filepath.Join(dir, "work"))
	assert.NilError(t, err)
	assert.NilError(t, tree.Close())
	command{name: "rmchroot", args: []string{tree.Path}}.run(t).mustExit(t, 0)
	noTrees(t, filepath.Join(dir, "work"))
	cache := filepath.Join(dir, "cache")
	c, err := rootfs.OpenCache(cache)
	assert.NilError(t, err)
	entry, err := c.Get(t.Context(), rootfs.Item{Kind: "test", About: "a test", Make: func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644) }})
	assert.NilError(t, err)
	assert.NilError(t, entry.Close())
	command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
	assert.DeepEqual(t, leftInCache(cache), []string(nil))

	// When a file has last been changed it learns late, of a link for instance.
	out := filepath.Join(dir, "out")
	assert.NilError(t, os.Mkdir(out, 0o755))
	putDeb(t, out, "first", "1")
	deb := filepath.Join(out, "first_1_all.deb")
	assert.NilError(t, errors.Join(os.Link(deb, deb+".2"), os.Remove(deb), os.Link(deb+".2", deb), os.Remove(deb+".2")))
	command{name: "repoindex", args: []string{out}}.run(t).mustExit(t, 0)
	v, err := repo.Verify(t.Context(), out, nil)
	assert.NilError(t, err)
	assert.Equal(t, v.Packages, 1, "%v", v.Problems)

	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		return // whole builds are slow there
	}
	kver, module := currentKernel(t, "amd64"), meansModules(t)
	want := t.TempDir()
	r := command{name: "dkmsbuild", stdin: sharedTree(t), args: []string{"--kver", kver, "--dkms", "bbswitch-dkms", module}}.run(t).mustExit(t, state.ExitDone)
	command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", want}}.run(t).mustExit(t, state.ExitDone)
	for _, row := range []struct {
		says    string
		options []string
		runs    int // more than one are from the cache
	}{
		{"what is written goes to memory first", nil, 2},
		{"roots are put together by copying", []string{"--xattr-none"}, 1},
	} {
		dir := onFUSE(t, row.options...)
		work, cache, out := filepath.Join(dir, "work"), filepath.Join(dir, "cache"), filepath.Join(dir, "out")
		for range row.runs {
			command{name: "dkms2bin", args: []string{
				"--dkms", "bbswitch-dkms", module, "--kver", kver, "--base", sharedBase(t),
				"--work-dir", work, "--cache-dir", cache, "--out-dir", out, "--index",
			}}.run(t).mustExit(t, 0).mustSay(t, row.says)
			sameDebs(t, out, want)
			noTrees(t, work)
		}
		command{name: "rmchroot", args: []string{"--cache", "--cache-dir", cache}}.run(t).mustExit(t, 0)
		assert.DeepEqual(t, leftInCache(cache), []string(nil))
	}
}
