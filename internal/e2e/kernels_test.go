//go:build e2e

package e2e

import (
	"dkms2bin/internal/apt"
	"dkms2bin/internal/deb"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// hostRepositories are the host's own, as --repo takes them.
func hostRepositories(t *testing.T) []string {
	t.Helper()
	host, err := apt.ReadHost(t.Context())
	assert.NilError(t, err)
	sources, err := host.Own()
	assert.NilError(t, err)
	var lines []string
	for _, s := range sources {
		lines = append(lines, fmt.Sprintf("deb [signed-by=%s] %s %s %s", s.SignedBy(), s.URI, s.Suite, strings.Join(s.Components, " ")))
	}
	return lines
}

// makeDeb makes a package of the files below root and the maintainer scripts.
func makeDeb(t *testing.T, dir, root, name, version, more string, scripts map[string]string) string {
	t.Helper()
	arch := "amd64"
	if strings.Contains(more, "Architecture: all\n") {
		arch, more = "all", strings.Replace(more, "Architecture: all\n", "", 1)
	}
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: A B <ab@example.org>\nDescription: made for a test\n%s", name, version, arch, more)
	assert.NilError(t, os.MkdirAll(filepath.Join(root, "DEBIAN"), 0o755))
	assert.NilError(t, os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte(control), 0o644))
	for script, text := range scripts {
		assert.NilError(t, os.WriteFile(filepath.Join(root, "DEBIAN", script), []byte(text), 0o755))
	}
	path := filepath.Join(dir, fmt.Sprintf("%s_%s_%s.deb", name, version, arch))
	mustRun(t, "dpkg-deb", "--root-owner-group", "-Znone", "-b", root, path)
	return path
}

// ownHeaders makes a package laid out as by the kernel's own deb-pkg, of the headers of
// the shared tree under another release: modules are really built for that one.
func ownHeaders(t *testing.T, dir, release, version, needs string) {
	t.Helper()
	k := shared.doc.Kernels[0]
	layer := filepath.Join(shared.doc.Tree.Path, "layers", k.Layer)
	root := t.TempDir()
	build := "/usr/src/linux-headers-" + release
	for _, d := range []string{"usr/src", "lib/modules/" + release} {
		assert.NilError(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	mustRun(t, "cp", "-a", filepath.Join(layer, "usr/src/linux-headers-"+k.Release), filepath.Join(root, build))
	assert.NilError(t, os.Symlink(build, filepath.Join(root, "lib/modules", release, "build")))
	uts := fmt.Sprintf("#define UTS_RELEASE %q\n", release)
	assert.NilError(t, os.WriteFile(filepath.Join(root, build, "include/generated/utsrelease.h"), []byte(uts), 0o644))
	assert.NilError(t, os.WriteFile(filepath.Join(root, build, "include/config/kernel.release"), []byte(release+"\n"), 0o644))
	makeDeb(t, dir, root, "linux-headers-"+strings.ToLower(release), version, "Source: linux-upstream\nDepends: linux-headers-"+strings.Replace(k.Release, "-amd64", "-common", 1)+", "+
		kbuild(t, k.Headers)+needs+"\n", nil)
}

// withArchive indexes a directory of packages, serves it, and returns the flags for
// it beside the host's own repositories.
func withArchive(t *testing.T, dir string) []string {
	t.Helper()
	command{name: "repoindex", args: []string{dir}}.run(t).mustExit(t, 0)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return append(append([]string{"--repo"}, hostRepositories(t)...), "deb [trusted=yes] "+server.URL+" ./")
}

// kbuild is what a kernel's headers need besides those that all flavours share.
func kbuild(t *testing.T, headers string) string {
	t.Helper()
	out := mustRun(t, "apt-cache", "show", "--no-all-versions", headers)
	stanza, err := deb.NewReader(strings.NewReader(out)).Next()
	assert.NilError(t, err)
	for dep := range strings.SplitSeq(stanza.Get("Depends"), ", ") {
		if strings.HasPrefix(dep, "linux-kbuild") || strings.HasPrefix(dep, "linux-compiler") {
			return dep
		}
	}
	t.Fatalf("%s depends on no linux-kbuild: %s", headers, stanza.Get("Depends"))
	return ""
}

// TestDryRun: kernels are found without their headers, and nothing is built then.
func TestDryRun(t *testing.T) {
	t.Parallel()
	sharedTree(t) // the cache has what it is made of
	r := command{name: "mkchroot", args: []string{"--work-dir", t.TempDir(), "--dry-run", "--kver", "new", "--keep-kernels", "1", "--out-dir", t.TempDir()}}.run(t).mustExit(t, 0)
	assert.Equal(t, len(r.doc.Kernels), 1)
	assert.Equal(t, r.doc.Kernels[0].Release, currentKernel(t, "amd64"))
	layers, err := filepath.Glob(filepath.Join(r.doc.Tree.Path, "layers", "headers-*"))
	assert.NilError(t, err)
	assert.Equal(t, len(layers), 0)
	r = command{name: "dkmsbuild", args: []string{"--dkms", "bbswitch-dkms"}, stdin: r.raw}.run(t).mustExit(t, 2).mustSay(t, "has no headers of ", "was mkchroot run with --dry-run?")
	command{name: "rmchroot", stdin: r.raw}.run(t).mustExit(t, 2) // of the document
	noTrees(t, filepath.Dir(filepath.Dir(r.doc.Tree.Path)))
}

// TestOwnKernels builds for kernels of one's own, with and without an image, beside
// the distribution's new one; then nothing is new.
func TestOwnKernels(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	current := shared.doc.Kernels[0].Release
	const own, bare = "6.1.192-SITE1", "6.1.192-bare"
	dir, out := t.TempDir(), t.TempDir()
	ownHeaders(t, dir, own, "6.1.192-7", "")
	ownHeaders(t, dir, bare, "6.1.192-8", "")
	image := t.TempDir()
	for _, file := range []string{"boot/vmlinuz-" + own, "lib/modules/" + own + "/modules.builtin", "lib/modules/" + own + "/kernel/x"} {
		assert.NilError(t, os.MkdirAll(filepath.Dir(filepath.Join(image, file)), 0o755))
		assert.NilError(t, os.WriteFile(filepath.Join(image, file), nil, 0o644))
	}
	makeDeb(t, dir, image, "linux-image-"+strings.ToLower(own), "6.1.192-7", "Source: linux-upstream\n", nil)
	work := t.TempDir()
	base := []string{"--work-dir", work, "--base", sharedBase(t)}

	r := command{name: "mkchroot", args: append(slices.Concat(base, withArchive(t, dir)), "--kver", "new", own, bare, "--keep-kernels", "1", "--out-dir", out)}.run(t).mustExit(t, 0)
	r.mustSay(t, "warning: no package is known that ships the kernel "+bare+" itself: the packages for it will only recommend linux-image-"+bare+"\n")
	tree := r.doc.Tree.Path
	t.Cleanup(func() { mustRun(t, filepath.Join(bin, "rmchroot"), tree) })
	var releases []string
	for _, k := range r.doc.Kernels {
		releases = append(releases, k.Release)
	}
	assert.DeepEqual(t, releases, []string{own, bare, current})
	k := r.doc.Kernels[0]
	assert.Equal(t, k.Headers, "linux-headers-6.1.192-site1")
	assert.Equal(t, k.Source, "linux-upstream (= 6.1.192-7)")
	assert.DeepEqual(t, k.Images, []state.Image{{Package: "linux-image-6.1.192-site1", Version: "6.1.192-7"}})
	assert.Equal(t, len(r.doc.Kernels[1].Images), 0)

	r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--kver", "new", own, bare, "--dkms", source(t, "mine", goodModule("mine"))}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
	assert.Equal(t, len(r.doc.Debs), 3)
	for _, b := range r.doc.Builds {
		assert.Assert(t, strings.HasPrefix(b.Modules[0].Vermagic, b.Kernel+" SMP"), b.Modules[0].Vermagic)
	}
	for i, want := range []string{"|linux-image-6.1.192-site1", "linux-image-6.1.192-bare | linux-image-6.1.192-bare-unsigned|", "|linux-image-" + current + " | linux-image-" + current + "-unsigned"} {
		d := r.doc.Debs[i]
		assert.Equal(t, mustRun(t, "dpkg-deb", "-W", "--showformat=${Recommends}|${Depends}", d.Path), want)
	}

	// The next run finds nothing new, and ends well.
	again := command{name: "dkms2bin", args: append(base,
		"--dkms", "bbswitch-dkms", "--out-dir", out, "--index", "--kver", "new", "--keep-kernels", "1",
	)}.run(t).mustExit(t, 0)
	again.mustSay(t, "mkchroot: no kernel is new: all have packages in "+out+"\n", "dkmsbuild: there is no kernel to build for\n")
	assert.Equal(t, len(debFiles(t, out)), 3)
}

// TestUbuntuNames takes the current kernel of Ubuntu's default flavour out of an
// archive with Ubuntu's names, in a tree that says it is Ubuntu's.
func TestUbuntuNames(t *testing.T) {
	t.Parallel()
	sharedTree(t)
	const abi, version = "5.15.0-91", "5.15.0-91.101"
	const release = abi + "-generic"
	dir := t.TempDir()
	base := filepath.Join(t.TempDir(), "ubuntu")
	mustRun(t, "cp", "-a", sharedBase(t), base)
	mustRun(t, "sed", "-i", "s/^ID=.*/ID=ubuntu/", filepath.Join(base, "usr/lib/os-release"))
	ownHeaders(t, dir, release, version, ", linux-headers-"+abi)
	makeDeb(t, dir, t.TempDir(), "linux-headers-"+abi, version, "Architecture: all\n", nil)
	makeDeb(t, dir, t.TempDir(), "linux-headers-generic", "5.15.0.91.88", "Depends: linux-headers-"+release+"\n", nil)
	for _, name := range []string{"linux-image-", "linux-image-unsigned-", "linux-modules-", "linux-modules-extra-"} {
		makeDeb(t, dir, t.TempDir(), name+release, version, "Source: linux\n", nil)
	}
	out := t.TempDir()
	r := command{name: "mkchroot", args: append([]string{"--work-dir", t.TempDir(), "--base", base}, withArchive(t, dir)...)}.run(t).mustExit(t, 0)
	tree := r.doc.Tree.Path
	t.Cleanup(func() { mustRun(t, filepath.Join(bin, "rmchroot"), tree) })
	assert.Equal(t, r.doc.Tree.Distribution, "ubuntu")
	assert.Equal(t, r.doc.Kernels[0].Release+" "+r.doc.Kernels[0].Flavour, release+" generic")
	r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", source(t, "mine", goodModule("mine"))}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", out}}.run(t).mustExit(t, 0)
	assert.Equal(t, filepath.Base(r.doc.Debs[0].Path), "mine-modules-"+release+"_1.0+5.15.0.91.101_amd64.deb")
	assert.Equal(t, mustRun(t, "dpkg-deb", "-W", "--showformat=${Depends}", r.doc.Debs[0].Path), "linux-image-"+release+" | linux-image-unsigned-"+release)
}

// TestDebPkg builds a small kernel by `make bindeb-pkg` and a module for it. The
// kernel takes minutes to build.
func TestDebPkg(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: the kernel takes minutes to build")
	}
	sharedTree(t)
	tree, err := rootfs.Open(shared.doc.Tree.Path)
	assert.NilError(t, err)
	assert.NilError(t, tree.Use())
	defer tree.Close()
	const layer = "test-debpkg"
	err = tree.MakeLayer(t.Context(), rootfs.LayerSpec{
		Name: layer, On: []string{shared.doc.Tree.Base},
		Make: func(root sandbox.Root) error {
			inside := apt.Inside{Spec: sandbox.Spec{Root: root, Mountpoint: tree.Mountpoint(), Env: sandbox.DefaultEnv()}, Log: testLog{t}}
			err := inside.Install(t.Context(), "linux-source", "bc", "bison", "cpio", "flex", "libelf-dev", "libssl-dev", "python3", "rsync", "xz-utils")
			if err != nil {
				return err
			}
			_, err = inside.Output(t.Context(), "sh", "-ec", `mkdir /build; cd /build; tar -xf /usr/src/linux-source-*.tar.xz --strip-components=1
				make -s tinyconfig
				scripts/config -e 64BIT -e MODULES -e MODULE_UNLOAD -e MODVERSIONS -e PRINTK -d LOCALVERSION_AUTO --set-str LOCALVERSION -own1
				make -s olddefconfig
				make -s -j"$(nproc)" bindeb-pkg KDEB_PKGVERSION=7 >make.log 2>&1 || { tail -n 50 make.log >&2; exit 1; }`)
			return err
		},
	})
	assert.NilError(t, err)
	dir := t.TempDir()
	mustRun(t, "sh", "-c", `cp "$1"/linux-headers-*.deb "$1"/linux-image-*.deb "$2"`, "sh", tree.LayerPath(layer), dir)
	assert.NilError(t, tree.RemoveLayer(layer))
	image := debFiles(t, dir)[1]
	name, _, _ := strings.Cut(filepath.Base(image), "_")
	release := strings.TrimPrefix(name, "linux-image-")
	r := command{name: "mkchroot", args: append([]string{"--work-dir", t.TempDir(), "--kver", release}, withArchive(t, dir)...)}.run(t).mustExit(t, 0)
	made := r.doc.Tree.Path
	t.Cleanup(func() { mustRun(t, filepath.Join(bin, "rmchroot"), made) })
	assert.Equal(t, r.doc.Kernels[0].Release, release)
	assert.DeepEqual(t, r.doc.Kernels[0].Images, []state.Image{{Package: name, Version: "7"}})
	r = command{name: "dkmsbuild", stdin: r.raw, args: []string{"--dkms", source(t, "mine", goodModule("mine"))}}.run(t).mustExit(t, 0)
	r = command{name: "debextract", stdin: r.raw, args: []string{"--out-dir", t.TempDir()}}.run(t).mustExit(t, 0)
	assert.Assert(t, strings.HasPrefix(r.doc.Builds[0].Modules[0].Vermagic, release+" "))
	assert.Equal(t, mustRun(t, "dpkg-deb", "-W", "--showformat=${Depends}", r.doc.Debs[0].Path), name)
}

// testLog is a writer to the log of a test.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
