//go:build e2e

package e2e

import (
	"bytes"
	"dkms2bin/internal/apt"
	"dkms2bin/internal/rootfs"
	"dkms2bin/internal/sandbox"
	"dkms2bin/internal/state"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// toolchain are the packages that nobody needs who has our modules.
var toolchain = regexp.MustCompile(`^(dkms|.+-dkms|make|build-essential|linux-(headers|kbuild)-.+|(gcc|g\+\+|cpp|clang)(-[0-9]+)?(-x86-64-linux-gnu)?)$`)

// TestUserspace: programs of the archive that depend on a -dkms package are installed
// with our packages in its place, and neither dkms nor a compiler nor headers come along.
func TestUserspace(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: it fetches another suite, its kernel and hundreds of packages")
	}
	t.Parallel()
	// The openrazer of trixie and before calls hid_report_raw_event as it was before
	// the updates of their kernels gave it another argument.
	const suite = "sid"
	rows := []struct{ userspace, dkms string }{
		{"openrazer-daemon", "openrazer-driver-dkms"},
		{"rtpengine", "rtpengine-kernel-dkms"},
	}
	made := suiteTree(t, suite)
	kver, out := made.doc.Kernels[0].Release, t.TempDir()
	args := []string{"--dkms"}
	for _, row := range rows {
		args = append(args, row.dkms)
	}
	built := command{name: "dkmsbuild", stdin: made.raw, args: args}.run(t).mustExit(t, 0)
	extracted := command{name: "debextract", stdin: built.raw, args: []string{"--out-dir", out, "--provide-dkms"}}.run(t).mustExit(t, 0)
	command{name: "repoindex", stdin: extracted.raw}.run(t).mustExit(t, 0)

	ctx := t.Context()
	tree := cleanTree(t, suite, kver)
	for _, row := range rows {
		t.Run(row.userspace, func(t *testing.T) {
			b := findBuild(t, extracted.doc, row.dkms, kver)
			i := slices.IndexFunc(extracted.doc.Debs, func(d state.Deb) bool { return d.Module == b.Module && d.Kernel == kver })
			assert.Assert(t, i >= 0)
			ours := extracted.doc.Debs[i]
			assert.NilError(t, tree.MakeLayer(ctx, rootfs.LayerSpec{
				Name: row.userspace, On: []string{"image", "clean"},
				Make: func(root sandbox.Root) error {
					var log bytes.Buffer
					a := apt.Inside{Log: &log, Spec: sandbox.Spec{
						Root: root, Mountpoint: tree.Mountpoint(), Env: append(sandbox.DefaultEnv(), "INITRD=No"),
						Binds: []sandbox.Bind{{Source: out, Target: inRepository}},
					}}
					run := func(args ...string) string {
						t.Helper()
						text, err := a.Output(ctx, args...)
						assert.NilError(t, err, "%v\n%s%s", args, text, &log)
						return string(text)
					}
					run("cp", "/etc/apt/modules.list", "/etc/apt/sources.list.d/modules.list")
					run(updateOurs...)
					// By itself apt takes the real package rather than one that provides its name.
					wanted := run("apt-get", "install", "--simulate", "--no-install-recommends", row.userspace)
					assert.Assert(t, strings.Contains(wanted, "\nInst "+row.dkms+" ") && strings.Contains(wanted, "\nInst dkms "), wanted)

					assert.NilError(t, a.Install(ctx, row.userspace, ours.Name), "%s", &log)
					installed, err := a.Installed(ctx)
					assert.NilError(t, err)
					for name := range installed {
						assert.Check(t, !toolchain.MatchString(name), name)
					}
					assert.Equal(t, installed[ours.Name], ours.Version)
					assert.Assert(t, installed[row.userspace] != "")
					assert.Equal(t, run("dpkg", "--audit"), "")
					for _, m := range b.Modules {
						name, _, _ := strings.Cut(m.File, ".ko")
						assert.Equal(t, strings.TrimSpace(run("modinfo", "-k", kver, "-F", "vermagic", name)), strings.TrimSpace(m.Vermagic))
					}
					t.Logf("%s %s with %s %s: %d packages", row.userspace, installed[row.userspace], ours.Name, ours.Version, len(installed))
					return nil
				},
			}))
		})
	}
}
