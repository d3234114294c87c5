package rootfs

import (
	"dkms2bin/internal/sandbox"
	"slices"
	"strings"
)

// mmdebstrap does one thing after the other: it waits for one answer of the mirror
// before it takes the next, and for decompression, twice for the first packages, which
// are unpacked by tar and then by dpkg. So the lists are fetched while it gets ready, the
// first packages by several connections, the others while the first are installed, and
// copies of the larger ones without compression are made meanwhile, of which dpkg takes
// what is ready when it gets there. Without them, for whatever reason, all is as it would
// be anyway, but for how /usr was merged: names, versions and contents are the same, and
// digests are checked here.
//
// See mmdebstrap(1), HOOKS, for when each of these is run. Its argument is the root.

// listsScript fetches the package lists, beginning with those that the host's apt has,
// and makes a mark when it is through. It runs beside mmdebstrap, in a root of its own
// with the same settings.
const listsScript = `root=/tmp/base.root
trap 'mkdir -p "$root"; : >"$root/through"' EXIT
mkdir -p "$root/etc/apt/apt.conf.d" "$root/etc/apt/preferences.d" "$root/etc/apt/sources.list.d" \
	"$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial" "$root/var/lib/dpkg"
: >"$root/var/lib/dpkg/status"
cp /tmp/base.conf "$root/etc/apt/apt.conf.d/base"
cp /tmp/base.sources "$root/etc/apt/sources.list.d/base.sources"
arch=$(dpkg --print-architecture)
eval "$(apt-config shell trusted Dir::Etc::trusted/f parts Dir::Etc::trustedparts/d)"
cat >"$root/conf" <<END
APT::Architecture "$arch";
APT::Architectures "$arch";
Dir "$root";
Dir::State::status "$root/var/lib/dpkg/status";
Dir::Etc::trusted "$trusted";
Dir::Etc::trustedparts "$parts";
END
given=$(cat /tmp/base.lists)
while [ -d "$given" ] && [ ! -e "$given/` + ListsReady + `" ]; do sleep 0.02; done
[ ! -d "$given" ] || cp -p "$given"/*_* "$root/var/lib/apt/lists" || : # it has none
APT_CONFIG="$root/conf" apt-get -q -o Acquire::Retries=0 -o pkgCacheFile::Generate=false update --error-on=any
: >"$root/fetched"
`

// aheadHook is run before mmdebstrap has apt do anything. What fails here fails in
// mmdebstrap once more, which says why. What is fetched later lies where
// mmdebstrap's own apt does not look meanwhile.
const aheadHook = `[ -n "${MMDEBSTRAP_APT_CONFIG-}" ] || exit 0
plain=$1/var/cache/apt/archives/plain
mkdir -p "$plain/partial" "$plain/later"
chown _apt "$plain/partial" || : # who does the talking, if he can get there
cp /tmp/base.take "$plain/take"
exec >/dev/null 2>&1 </dev/null
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
while [ ! -e /tmp/base.root/through ]; do sleep 0.02; done
# Without lists mmdebstrap has apt fetch them itself, and fails.
[ -e /tmp/base.root/fetched ] || exit 0
rm -rf "$1/var/lib/apt/lists"
mv /tmp/base.root/var/lib/apt/lists "$1/var/lib/apt"
apt-cache -q gencaches || exit 0
# Of these two apt takes the first, which converts the system once it is installed, and
# brings Perl into the first packages. The other is for a system that was merged from the
# beginning, as by debootstrap; it removes the links that are not wanted.
if apt-cache show init-system-helpers | grep -q "^Depends:.*usrmerge | usr-is-merged" && apt-cache policy usr-is-merged | grep -q "^  Candidate: [^(]"; then
	for dir in bin sbin lib lib32 lib64 libo32 libx32; do
		mkdir -p "$1/usr/$dir"
		ln -s "usr/$dir" "$1/$dir"
	done
	printf "Package: usrmerge\nPin: version *\nPin-Priority: -1\n" >"$1/etc/apt/preferences.d/merged"
fi
list() { apt-get -q -y --print-uris -o Acquire::ForceHash=SHA256 install "?essential" apt "$@" | sort >"$plain/$list"; }
fetch() { tr -d "'" <"$plain/$list" | awk '$1 ~ /^https?:/ && $4 ~ /^SHA256:/ { print $1, $2, $4 }' | xargs -r -n 30 -P 6 sh /tmp/base.fetch "$plain/partial" "$1"; }
exec 9>/tmp/base.lock
flock 9
(
	trap ': >"$plain/listed"' EXIT
	list=all
	list $(echo "$MMDEBSTRAP_INCLUDE" | tr , " ")
) &
list=first
list
{
	perl /tmp/base.plain "$plain"
	env -u APT_CONFIG chroot "$1" apt-cache -q -o Debug::NoLocking=true -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=archives/plain/srcpkgcache.bin gencaches
} 9>&- &
(
	trap ': >"$plain/fetched"' EXIT
	fetch "$plain/.."
	: >"$plain/started"
	while [ ! -e "$plain/listed" ]; do sleep 0.05; done
	comm -13 "$plain/first" "$plain/all" >"$plain/others"
	list=others
	fetch "$plain/later"
) &
while [ ! -e "$plain/started" ] && [ ! -e "$plain/fetched" ]; do sleep 0.05; done`

// fetchScript fetches to a directory, and moves what is whole to another: URIs, names
// and digests, as apt prints them.
const fetchScript = `cd "$1"
to=$2
shift 2
/usr/lib/apt/apt-helper -q -o Acquire::Retries=0 download-file "$@" || exit 0
while [ $# -gt 2 ]; do
	mv "$2" "$to/$2"
	shift 3
done`

// plainScript makes copies without compression: of the first packages as long as these
// are not unpacked, and of the others, large ones first, those being what takes dpkg
// longest. Once apt has said in which order dpkg unpacks the others, it goes on from the
// end of it until it meets dpkg. It gives each its name when it is whole. Its argument is
// the directory for them. It is in Perl, as mmdebstrap is. The format is that of deb(5): a
// file of ar, in which the third member has the files.
const plainScript = `use strict; use warnings;
chdir $ARGV[0] or die;
sub copy {
	my ($deb, $name) = @_;
	open my $in, "<:raw", $deb or return;
	read $in, my $start, 132;
	my $size = substr $start, 120, 10;
	$size += $size % 2;
	read $in, $start, $size, 132;
	read $in, my $member, 60;
	return if $member !~ /^data\.tar/;
	open my $out, "+>:raw", "$name.part" or die;
	syswrite $out, $start . (" " x 60);
	my $pid = fork // die;
	if (!$pid) {
		open STDOUT, ">&", $out;
		exec "dpkg-deb", "--fsys-tarfile", $deb or die;
	}
	waitpid $pid, 0;
	return if $?;
	sysseek $out, 0, 2;
	my $end = (-s $out) - length($start) - 60;
	sysseek $out, length $start, 0;
	syswrite $out, sprintf "%-16s%-12s%-6s%-6s%-8s%-10s\140\n", "data.tar", 0, 0, 0, 100644, $end;
	close $out or die;
	rename "$name.part", -e "order" && -e "../$name" ? "../$name" : $name;
}
my %seen;
sub worth { !$seen{$_} && -s > 1 << 17 }
until (-e "order") {
	exit if !-e "take";
	my @first = -e "unpacked" ? () : glob "../*.deb";
	my ($next) = map { sort { -s $b <=> -s $a } grep worth(), @$_ } \@first, [glob "later/*.deb"];
	if ($next) {
		$seen{$next} = 1;
		my ($name) = $next =~ m{([^/]+)$};
		copy($next, $name);
	} else {
		select undef, undef, undef, 0.05;
	}
}
-e "../$_" and rename $_, "../$_" for glob "*.deb"; # made while the others were taken
open my $in, "<", "order" or die;
chomp(my @order = <$in>);
sub unpacked {
	my ($name, $arch) = shift =~ m{^([^_]+)_.*_([^_]+)\.deb$} or return 1;
	grep { -e "../../../../lib/dpkg/info/$_.list" } $name, "$name:$arch";
}
for my $i (reverse 1 .. $#order) {
	exit if unpacked($order[$i - 1]); # and dpkg is at this one
	copy($_, $order[$i]) for grep worth(), "later/$order[$i]";
}`

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
plain=$1/var/cache/apt/archives/plain
[ -d "$plain" ] || exit 0
for deb in ${MMDEBSTRAP_ESSENTIAL-}; do
	[ ! -f "$plain/${deb##*/}" ] || mv "$plain/${deb##*/}" "$1$deb"
done
: >"$plain/unpacked"`

// waitHook is run when they are installed: all others are wanted now.
const waitHook = `[ -e /tmp/base.lock ] || exit 0
rm -f "$1/etc/apt/preferences.d/merged"
flock /tmp/base.lock true
cd "$1/var/cache/apt/archives"
find plain/later -name "*.deb" -exec ln -t . {} +
echo "packages fetched ahead: $(find . -maxdepth 1 -name "*.deb" | wc -l) of $(grep -c "^'" plain/all)"`

// takeConf has apt run takeScript, in the new root, when it has looked at all packages
// and is about to call dpkg, with the files for dpkg in its order.
const (
	takeConf   = "\nDPkg::Pre-Install-Pkgs { \"test ! -e /var/cache/apt/archives/plain/take || sh -e /var/cache/apt/archives/plain/take\"; };\n"
	takeScript = `cd /var/cache/apt/archives/plain
sed "s,.*/,," >order.part
for deb in *.deb; do
	[ ! -f "../$deb" ] || mv "$deb" "../$deb"
	rm -f "later/$deb"
done
mv order.part order
`
)

// copyScript copies what was put together in memory, by two processes at a time, then
// what apt completes meanwhile: its index of the lists.
const copyScript = `cd "$1"
index=var/cache/apt/archives/plain/srcpkgcache.bin
[ ! -e "$index" ] || mv "$index" var/cache/apt
rm -rf var/cache/apt/archives/plain var/cache/apt/archives/*.deb
chroot . apt-cache -q gencaches &
mkdir -p /tmp/base/usr/lib # whose attributes come with what is in them
{
	find usr/lib -mindepth 1 -maxdepth 1 -print0
	find usr -mindepth 1 -maxdepth 1 ! -name lib -print0
	find . -mindepth 1 -maxdepth 1 ! -name usr ! -name var -print0
} | xargs -0 -n 8 -P 2 sh -c 'exec cp -a --parents "$@" /tmp/base' sh
wait "$!" || : # it is tried again in the tree
cp -a var /tmp/base`

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
func aheadFiles(spec BaseSpec) []sandbox.File {
	text := func(name, content string) sandbox.File {
		return sandbox.File{Target: "/tmp/base." + name, Content: []byte(content), Mode: 0o644}
	}
	return []sandbox.File{
		text("update", listsScript), text("excludes", strings.Join(PathExcludes, "\n")+"\n"),
		text("conf", string(spec.AptConf)+takeConf), text("lists", spec.Lists),
		text("fetch", fetchScript), text("plain", plainScript), text("take", takeScript),
		{Target: aheadPath + "/dpkg-deb", Content: []byte(dpkgDeb), Mode: 0o755},
	}
}
