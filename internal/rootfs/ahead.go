package rootfs

import (
	"dkms2bin/internal/sandbox"
	"slices"
	"strings"
)

// mmdebstrap does one thing after the other, and most of its time is decompression:
// the first packages are unpacked twice, by tar and by dpkg, all others by dpkg while it
// waits. So everything is fetched at once before, and copies of the larger packages
// without compression are made meanwhile, of which dpkg takes what is ready. Without
// them, for whatever reason, all is as it would be anyway: apt has checked what it
// fetched by then, and names, versions and contents are the same.
//
// See mmdebstrap(1), HOOKS, for when each of these is run. Its argument is the root.

// aheadHook is run before mmdebstrap has apt do anything. What fails here fails in
// mmdebstrap once more, which says why.
const aheadHook = `[ -n "${MMDEBSTRAP_APT_CONFIG-}" ] || exit 0
plain=$1/var/cache/apt/archives/plain
mkdir -p "$plain"
cp /tmp/base.take "$plain/take"
exec 9>/tmp/base.lock
flock 9
sh -e /tmp/base.plain "$plain" >/dev/null 2>&1 </dev/null &
(
	export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
	# Without this directory mmdebstrap has apt fetch the lists itself, and fails.
	apt-get -q -o Acquire::Retries=0 update --error-on=any || { rm -rf "$1/var/lib/apt/lists/auxfiles"; exit 1; }
	apt-get -q -y -o Acquire::Retries=0 --download-only install "?essential" apt $(echo "$MMDEBSTRAP_INCLUDE" | tr , " ")
) >/dev/null 2>&1 9>&- || :
: >"$plain/fetched"`

// plainScript makes copies without compression, small ones first: those are needed
// first. It gives each its name when it is whole. The format is that of deb(5): a file
// of ar, in which the third member has the files.
const plainScript = `cd "$1"
copy() {
	control=$(tail -c +121 "$1" | head -c 10)
	at=$((132 + control + control % 2))
	[ "$(tail -c +$((at + 1)) "$1" | head -c 8)" = data.tar ] || return 0
	dpkg-deb --fsys-tarfile "$1" >data
	{
		head -c $at "$1"
		printf "%-16s%-12s%-6s%-6s%-8s%-10s\140\n" data.tar 0 0 0 100644 "$(stat -c %s data)"
		cat data
	} >copy
	mv copy "${1##*/}"
}
more=yes
while [ $more = yes ]; do
	[ ! -e fetched ] || more=no
	find .. -maxdepth 1 -name "*.deb" -size +128k -printf "%s %f\n" | sort -n | while read -r _ name; do
		[ -e "$name.seen" ] || copy "../$name"
		: >"$name.seen"
	done
	[ $more = no ] || sleep 0.1
done`

// dpkgDeb stands in for dpkg-deb while mmdebstrap unpacks the first packages by it.
const (
	aheadPath = "/tmp/base.bin"
	dpkgDeb   = `#!/bin/sh
plain=${2%/*}/plain/${2##*/}
[ "$1" != --fsys-tarfile ] || [ ! -f "$plain" ] || set -- "$1" "$plain"
exec /usr/bin/dpkg-deb "$@"
`
)

// excludeHook is run when the first packages are unpacked. It does what mmdebstrap's
// --dpkgopt would have done by a filter in Python for each of them, which takes as long
// as all their installation: what is excluded is removed before dpkg installs them.
const excludeHook = `cp /tmp/base.excludes "$1/etc/dpkg/dpkg.cfg.d/dkms2bin"
(cd "$1/usr/share" && rm -rf man/* locale/* info/* doc/*)
for deb in ${MMDEBSTRAP_ESSENTIAL-}; do
	plain=$1${deb%/*}/plain/${deb##*/}
	[ ! -f "$plain" ] || mv "$plain" "$1$deb"
done`

// waitHook is run when they are installed: soon all others are wanted.
const waitHook = `[ ! -e /tmp/base.lock ] || flock /tmp/base.lock true; : "$1"`

// takeConf has apt run takeScript, in the new root, when it has looked at all packages
// and is about to call dpkg.
const (
	takeConf   = "\nDPkg::Pre-Install-Pkgs { \"test ! -e /var/cache/apt/archives/plain/take || sh -e /var/cache/apt/archives/plain/take\"; };\n"
	takeScript = `cat >/dev/null
cd /var/cache/apt/archives/plain
for deb in *.deb; do
	[ ! -f "../$deb" ] || mv "$deb" "../$deb"
done
`
)

// copyScript copies what was put together in memory, by two processes at a time.
const copyScript = `rm -rf "$1/var/cache/apt/archives/plain"
cd "$1"
cp -a --parents usr/lib /tmp/base &
first=$!
for name in * .[!.]*; do
	case $name in
	usr | ".[!.]*") ;;
	*) cp -a "$name" /tmp/base ;;
	esac
done
for name in usr/*; do
	[ "$name" = usr/lib ] || cp -a --parents "$name" /tmp/base
done
wait "$first"`

// aheadEnv is an environment in which mmdebstrap finds the stand-in.
func aheadEnv(env []string) []string {
	env = slices.Clone(env)
	for i, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			env[i] = "PATH=" + aheadPath + ":" + path
		}
	}
	return env
}

// aheadFiles are what the hooks read.
func aheadFiles(aptConf []byte) []sandbox.File {
	text := func(name, content string) sandbox.File {
		return sandbox.File{Target: "/tmp/base." + name, Content: []byte(content), Mode: 0o644}
	}
	return []sandbox.File{
		text("excludes", strings.Join(PathExcludes, "\n")+"\n"),
		text("conf", string(aptConf)+takeConf),
		text("plain", plainScript), text("take", takeScript),
		{Target: aheadPath + "/dpkg-deb", Content: []byte(dpkgDeb), Mode: 0o755},
	}
}
