# Completion for bash of dkms2bin and its programs. Which options there are, and what
# their values are, is read from the program's own --help; the names of packages and
# kernels come from apt's lists.

_dkms2bin() {
	local program=${COMP_WORDS[0]} cur=${COMP_WORDS[COMP_CWORD]} help options last='' kind='' i
	[ "$cur" != = ] || cur=''
	help=$("$program" --help 2>/dev/null) || return
	[[ $program != *-slurm ]] || help+=$'\n'$("${program%-slurm}" --help 2>/dev/null) # takes those, too
	options=$(sed -n 's/^  \(-h, \)\{0,1\}\(--[a-z-]*\)\( [^ ]*\)\{0,1\}.*/\2\3/p' <<<"$help")

	# The option before. What it says of its value: "release...", with the dots of a list.
	for ((i = COMP_CWORD - 1; i > 0; i--)); do
		case ${COMP_WORDS[i]} in
		-*)
			last=${COMP_WORDS[i]}
			break
			;;
		esac
	done
	if [ -n "$last" ]; then
		kind=$(sed -n "s/^$last //p" <<<"$options")
		case $kind in
		*...) ;;
		*) # one value, behind a blank or an equals sign
			[ $((COMP_CWORD - i)) -eq 1 ] || [[ ${COMP_WORDS[i + 1]} == "=" && $((COMP_CWORD - i)) -eq 2 ]] || kind=''
			;;
		esac
	fi
	COMPREPLY=()
	if [[ $cur == -* ]] || { [ -z "$kind" ] && [[ $help != *'[DIR'* && $help != *'[ARCHIVE'* ]]; }; then
		mapfile -t COMPREPLY < <(compgen -W "$(cut -d' ' -f1 <<<"$options")" -- "$cur")
		return
	fi
	kind=${kind%...}
	case ${kind,,} in
	'' | file | path)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		;;
	dir | directory | repository)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "$cur")
		;;
	package)
		if [[ $cur == */* || $cur == .* ]]; then
			compopt -o filenames
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		elif [ "$last" = --dkms ]; then
			mapfile -t COMPREPLY < <(apt-cache pkgnames "$cur" 2>/dev/null | grep -e '-dkms$')
		else
			mapfile -t COMPREPLY < <(apt-cache pkgnames "$cur" 2>/dev/null)
		fi
		;;
	kver | release)
		mapfile -t COMPREPLY < <(compgen -W "new $(apt-cache pkgnames linux-headers- 2>/dev/null |
			sed -n '/-common/d; s/^linux-headers-\([0-9].*-[a-z].*\)/\1/p')" -- "$cur")
		;;
	relation)
		mapfile -t COMPREPLY < <(compgen -W 'depends recommends none' -- "$cur")
		;;
	esac
}

complete -F _dkms2bin dkms2bin dkms2bin-slurm mkchroot dkmsbuild debextract repoindex rmchroot
