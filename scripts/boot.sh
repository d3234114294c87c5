# boot.sh: what the scripts with machines and images share. It is read by them,
# not run. They set name, for messages.
# shellcheck shell=sh

say() { printf '%s: %s\n' "${name:?}" "$*" >&2; }

# fail MESSAGE [HINT] ends the script.
fail() {
	say "error: $1"
	[ -z "${2-}" ] || say "hint: $2"
	exit 1
}

# need PROGRAM... looks for what is not on every host.
need() {
	for program; do
		command -v "$program" >/dev/null || fail "there is no $program" "scripts/setup --tests installs what is missing"
	done
}

child=''

# run COMMAND... in the background, since a trap would otherwise wait for its end, and
# in namespaces that take all its processes and mounts with them: mmdebstrap does
# not end before the scripts that it runs.
run() {
	unshare --mount --mount-proc --pid --fork --kill-child "$@" &
	child=$!
	code=0
	wait "$child" || code=$?
	child=''
	return $code
}

# begin DIRECTORY makes $work below it, which goes in the end, whatever happens,
# with what run is running; at_end may do more.
begin() {
	work=$(mktemp -d "$1/dkms2bin-$name.XXXXXXXX")
	trap finish EXIT
	trap 'exit 130' HUP INT TERM
}

finish() {
	code=$?
	trap - EXIT
	[ -z "$child" ] || {
		kill -KILL "$child" 2>/dev/null || :
		wait "$child" 2>/dev/null || :
	}
	at_end
	# What was killed may take a moment to let go.
	rm -rf --one-file-system -- "$work" 2>/dev/null || { sleep 1 && rm -rf --one-file-system -- "$work"; }
	exit $code
}

at_end() { :; }

# host_codename prints the host's own suite.
host_codename() { (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME-}"); }

# host_sources SUITE prints the distribution's repositories among those of the
# host's apt, each in a line of sources.list, for this suite. Without signed-by:
# mmdebstrap finds the distribution's keyring.
host_sources() {
	# shellcheck disable=SC2016 # apt expands it
	found=$(apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
		awk -F '|' -v own="$(host_codename)" -v suite="$1" '
			$1 !~ /^(Debian|Ubuntu)( Backports)?$/ { next }
			$3 == own { pocket = "" }
			index($3, own "-") == 1 { pocket = substr($3, length(own) + 1) }
			$3 != own && (index($3, own "-") != 1 || suite != own && pocket !~ /^-(updates|security)$/) { next }
			pocket != "" && suite ~ /^(sid|unstable|experimental)$/ { next }
			!seen[$0]++ { print "deb", $2, suite pocket, $4 }')
	[ -n "$found" ] || fail "the host's apt has no repository of its distribution" 'apt-get update fetches what it has'
	printf '%s\n' "$found"
}

# source_of REPOSITORY prints a line of sources.list for a directory, an address of
# a flat repository, or such a line. Of a directory no signature is asked: whoever
# can write there can sign, too.
source_of() {
	case $1 in
	'deb '*) printf '%s\n' "$1" ;;
	*://*) printf 'deb %s ./\n' "$1" ;;
	*)
		[ -f "$1/Packages" ] || fail "$1 is no repository: it has no file Packages" "repoindex $1 makes one of it"
		printf 'deb [trusted=yes] copy:%s ./\n' "$(readlink -f -- "$1")"
		;;
	esac
}

# package_of NAME KVER prints the name of the binary package for a module.
package_of() {
	case $1 in
	*-"$2") printf '%s\n' "$1" ;;
	*) printf '%s-modules-%s\n' "$1" "$2" ;;
	esac | tr '[:upper:]_' '[:lower:]-'
}

# vm SECONDS CONSOLE KERNEL INITRD APPEND [FLAG...] boots a machine that has two
# serial lines at most, no display and no network but what flags add, and ends when
# it is switched off, resets or panics; 124 says that the time was over. Only
# emulation is right everywhere: /dev/kvm may be there and not work.
vm() {
	seconds=$1 console=$2 kernel=$3 initrd=$4 append=$5
	shift 5
	# shellcheck disable=SC2086 # several words
	run timeout -k 10 "$seconds" ${DKMS2BIN_QEMU:-qemu-system-x86_64 -accel tcg -cpu max} -m 512 -smp 1 -no-reboot \
		-nodefaults -display none -monitor none -nic none -serial "file:$console" \
		-kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 panic=-1 $append" "$@" </dev/null >&2
}

# What a bootstrap image has besides its kernel, live-boot and modules; it is what
# Fuel's has, as far as Debian has it.
bootstrap_packages='live-boot live-boot-initramfs-tools wget systemd-sysv udev kmod ifupdown isc-dhcp-client openssh-client
openssh-server ntpsec ethtool iproute2 pciutils dmidecode hwloc-nox lvm2 mdadm multipath-tools parted squashfs-tools xz-utils'

# image DIR SUITE KVER SOURCES PACKAGE... makes a bootstrap image in DIR: the tree
# root, and vmlinuz, initrd.img and root.squashfs of it. SOURCES is a sources.list.
# What DIR/overlay has goes into the tree before packages are installed. The
# initramfs is made once, in the end, so that modules get into it.
image() {
	dir=$1 suite=$2 kver=$3 list=$4
	shift 4
	mkdir -p "$dir/overlay/etc/initramfs-tools"
	echo update_initramfs=no >"$dir/overlay/etc/initramfs-tools/update-initramfs.conf"
	# shellcheck disable=SC2016,SC2086 # the inner shell expands it; one word for each package
	run mmdebstrap --quiet --mode=root --variant=apt --format=directory \
		--include="$(echo $bootstrap_packages "linux-image-$kver" "$@" | tr ' ' ,)" \
		--aptopt='APT::Update::Error-Mode "any"' --dpkgopt=force-confold \
		--setup-hook="cp -R '$dir/overlay/.' \"\$1\"" \
		--customize-hook='rm "$1/etc/initramfs-tools/update-initramfs.conf"' \
		--customize-hook="chroot \"\$1\" update-initramfs -c -k '$kver'" \
		"$suite" "$dir/root" "$list" >"$dir/log" 2>&1 || {
		tail -n 30 "$dir/log" >&2
		fail "cannot make the image in $dir"
	}
	cp "$dir/root/boot/vmlinuz-$kver" "$dir/vmlinuz"
	cp "$dir/root/boot/initrd.img-$kver" "$dir/initrd.img"
	run mksquashfs "$dir/root" "$dir/root.squashfs" -noappend -no-progress -quiet -comp zstd -Xcompression-level 3 -e "$dir/root/boot" >>"$dir/log" 2>&1 || {
		tail -n 30 "$dir/log" >&2
		fail "cannot compress the image in $dir"
	}
}
