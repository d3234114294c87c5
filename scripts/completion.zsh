#compdef dkms2bin dkms2bin-slurm mkchroot dkmsbuild debextract repoindex rmchroot
# Completion for zsh of dkms2bin and its programs. Which options there are, and what
# their values are, is read from the program's own --help; the names of packages and
# kernels come from apt's lists.

local help line option='' kind='' last='' i
local -a options
local -A kinds
help=$(_call_program options ${(q)${(Q)words[1]}} --help 2>/dev/null) || return 1
# dkms2bin-slurm takes those of dkms2bin, too.
[[ ${(Q)words[1]} != *-slurm ]] || help+=$'\n'$(_call_program options ${(q)${${(Q)words[1]}%-slurm}} --help 2>/dev/null)

# "  --kver release...", with a text behind it or on the next line.
for line in ${(f)help}; do
	if [[ $line =~ '^  (-h, )?(--[a-z-]+)( [^ ]+)?( +[^ ].*)?$' ]]; then
		option=$match[2] kinds[$match[2]]=${match[3]# }
		options+=("$option:${${match[4]:-}## #}")
	elif [[ -n $option && $line =~ '^ +([^ ].*)$' && $options[-1] == *: ]]; then
		options[-1]+=$match[1]
	fi
done

# The option before, whose value this may be.
if [[ $PREFIX == --*=* ]]; then
	last=${PREFIX%%=*}
	kind=${kinds[$last]%...}
	compset -P 1 '*='
else
	for ((i = CURRENT - 1; i > 1; i--)); do
		[[ $words[i] != -* ]] || break
	done
	if ((i > 1)) && [[ $words[i] != *=* ]]; then
		last=$words[i] kind=$kinds[$words[i]]
		[[ $kind == *... ]] || ((CURRENT - i == 1)) || kind=''
		kind=${kind%...}
	fi
fi

if [[ $PREFIX == -* || ( -z $kind && $help != *\[(DIR|ARCHIVE)* ) ]]; then
	_describe -o option options
	return
fi
local -a names
case ${(L)kind} in
'' | file | path) _files ;;
dir | directory | repository) _files -/ ;;
package)
	if [[ $PREFIX == (*/|.)* ]]; then
		_files
	elif [[ $last == --dkms ]]; then
		names=(${(M)${(f)"$(_call_program packages apt-cache pkgnames $PREFIX 2>/dev/null)"}:#*-dkms})
		compadd -a names
	else
		names=(${(f)"$(_call_program packages apt-cache pkgnames $PREFIX 2>/dev/null)"})
		compadd -a names
	fi
	;;
kver | release)
	names=(new ${${${(f)"$(_call_program kernels apt-cache pkgnames linux-headers- 2>/dev/null)"}:#*-common*}#linux-headers-})
	names=(${(M)names:#(new|<->*-[a-z]*)})
	compadd -a names
	;;
relation) compadd depends recommends none ;;
esac
