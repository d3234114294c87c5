package dkms

import (
	"bytes"
	"context"
	"dkms2bin/internal/sandbox"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Conf is what the dkms.conf of a module says for one kernel, as far as it
// bears on other modules.
type Conf struct {
	// BuildDepends are the names of modules that are to be installed before this
	// one is built: BUILD_DEPENDS of dkms(8).
	BuildDepends []string `json:"build_depends,omitempty"`
	// PreBuild says that there is a script of PRE_BUILD.
	PreBuild bool `json:"pre_build,omitempty"`
	// PostBuild is the script of POST_BUILD, with its arguments.
	PostBuild string `json:"post_build,omitempty"`
	// DropsSymbols says that the tree's dkms does not keep the Module.symvers of
	// a build, as it does since 3.1.3.
	DropsSymbols bool `json:"drops_symbols,omitempty"`
}

// confTime is what reading one dkms.conf may take: it is a program.
const confTime = time.Minute

// confScript evaluates a dkms.conf as dkms does: in bash, with the variables that
// dkms has set by then, and after it the settings for that module in /etc/dkms. It
// prints fields that end in NUL.
const confScript = `
module=$1 module_version=$2 kernelver=$3
arch=$(uname -m)
dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules tmp_location=/tmp
kernel_source_dir=$install_tree/$kernelver/build
kernel_config=$kernel_source_dir/.config
exec 3>&1 >/dev/null 2>&1
for conf in "$dkms_tree/$module/$module_version/source/dkms.conf" "/etc/dkms/$module.conf" \
	"/etc/dkms/$module-$module_version.conf" "/etc/dkms/$module-$module_version-$kernelver.conf" \
	"/etc/dkms/$module-$module_version-$kernelver-$arch.conf"; do
	[ ! -e "$conf" ] || . "$conf" 3>&-
done
builtin printf '%s\0' "$POST_BUILD" "$PRE_BUILD" >&3
grep -q Module.symvers /usr/sbin/dkms && builtin printf 'keeps\0' >&3 || builtin printf 'drops\0' >&3
for name in "${BUILD_DEPENDS[@]}"; do builtin printf '%s\0' "$name" >&3; done
`

// ErrConf says that a dkms.conf could not be evaluated: it took a minute, or killed
// what evaluates it.
var ErrConf = errors.New("cannot evaluate dkms.conf")

// ReadConf evaluates the dkms.conf of a module for a kernel, in a root that has the
// module, the kernel's headers and dkms. Where an error wraps ErrConf, what is wrong
// shows when the module is built.
func ReadConf(ctx context.Context, spec sandbox.Spec, kernel string, m Module) (Conf, error) {
	limited, cancel := context.WithTimeoutCause(ctx, confTime, ErrConf)
	defer cancel()
	var out bytes.Buffer
	spec.Args = []string{"bash", "-c", confScript, "bash", m.Name, m.Version, kernel}
	spec.Stdout, spec.Stderr = &bounded{w: &out, left: 1 << 20}, nil
	err := sandbox.Run(limited, spec)
	var exit *sandbox.ExitError // the last command's
	switch {
	case errors.Is(err, sandbox.ErrDied):
		return Conf{}, fmt.Errorf("%w: %w", ErrConf, err)
	case err != nil && !errors.As(err, &exit):
		return Conf{}, err
	}
	return parseConf(out.String()), nil
}

// parseConf reads what confScript prints. What cannot be a module's name names
// nothing; an element may have several names, as for dkms autoinstall.
func parseConf(out string) (c Conf) {
	fields := strings.Split(out, "\x00")
	if len(fields) < 4 {
		return c
	}
	c.PostBuild, c.PreBuild, c.DropsSymbols = strings.TrimSuffix(fields[0], "\r"), strings.TrimSpace(fields[1]) != "", fields[2] == "drops"
	for _, element := range fields[3 : len(fields)-1] {
		for _, name := range strings.Fields(element) {
			if saneName().MatchString(name) && !slices.Contains(c.BuildDepends, name) {
				c.BuildDepends = append(c.BuildDepends, name)
			}
		}
	}
	return c
}
