//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// typist runs a shell on a terminal, types lines into it, and prints what is on the command
// line after each. In both shells Tab completes, and Ctrl-X says what the line is by now,
// and empties it.
const typist = `
zmodload zsh/zpty
shell=$1 scripts=$2; shift 2
case $shell in
bash)
	zpty typist bash --norc --noprofile -i
	setup="bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; say() { echo \"<\$READLINE_LINE>\"; READLINE_LINE=; }; bind -x '\"\C-x\": say'; source $scripts/completion.bash; cd /; PS1=; echo rea''dy"
	;;
zsh)
	zpty typist zsh -f -i
	mkdir -p $scripts/functions
	cp $scripts/completion.zsh $scripts/functions/_dkms2bin
	setup="fpath=($scripts/functions \$fpath); autoload -Uz compinit; compinit -u -D; zstyle ':completion:*' menu no; setopt no_auto_menu no_list_beep no_auto_remove_slash; say() { zle -I; echo \"<\$BUFFER>\"; BUFFER= ; }; zle -N say; bindkey '^X' say; bindkey '^I' complete-word; cd /; PS1=; PS2=; echo rea''dy"
	;;
esac
expect() { # TEXT...: reads until it is there
	seen=
	while [[ $seen != *$~1* ]]; do
		zpty -r typist part || exit 1
		seen+=$part
	done
}
zpty -w typist $setup
expect ready
for line; do
	zpty -w -n typist $line$'\t\x18'
	expect '<*>*'$'\n'
	seen=${seen##*'<'}
	print -r -- "${seen%%'>'*}"
done
zpty -d typist
`

// TestCompletion types into real shells.
func TestCompletion(t *testing.T) {
	kver := currentKernel(t, "amd64")
	rows := []struct{ typed, line string }{
		{"dkms2bin --do-n", "dkms2bin --do-not-remove "},
		{"dkms2bin --dkms v4l2loop", "dkms2bin --dkms v4l2loopback-dkms "},
		{"dkms2bin --dkms x-dkms bbswitch-d", "dkms2bin --dkms x-dkms bbswitch-dkms "},
		{"dkms2bin --index --dk", "dkms2bin --index --dkms "},
		{"dkms2bin --kver ne", "dkms2bin --kver new "},
		{"dkms2bin --out-dir /usr/inc", "dkms2bin --out-dir /usr/include/"},
		{"dkms2bin --build-package build-essentia", "dkms2bin --build-package build-essential "},
		{"dkms2bin --image-dependency re", "dkms2bin --image-dependency recommends "},
		{"mkchroot --kver " + strings.TrimSuffix(kver, "-amd64") + "-am", "mkchroot --kver " + kver + " "},
		{"mkchroot --settings /etc/debian_ver", "mkchroot --settings /etc/debian_version "},
		{"repoindex --aud", "repoindex --audit "},
		{"repoindex --audit /usr/inc", "repoindex --audit /usr/include/"},
		{"rmchroot /usr/inc", "rmchroot /usr/include/"},
		{"dkms2bin-slurm --wai", "dkms2bin-slurm --wait "},
		{"dkms2bin-slurm --wait --image-dependency re", "dkms2bin-slurm --wait --image-dependency recommends "},
		{"debextract --sign-c", "debextract --sign-c"}, // cert or command
	}
	for _, shell := range []string{"bash", "zsh"} {
		t.Run(shell, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			dir := t.TempDir()
			for _, file := range []string{"completion.bash", "completion.zsh"} {
				text, err := os.ReadFile(filepath.Join(scripts, file))
				assert.NilError(t, err)
				assert.NilError(t, os.WriteFile(filepath.Join(dir, file), text, 0o644))
			}
			args := []string{"-fc", typist, "typist", shell, dir}
			for _, row := range rows {
				args = append(args, row.typed)
			}
			cmd := exec.CommandContext(ctx, "zsh", args...)
			cmd.Env = append(os.Environ(), "PATH="+scripts+":"+bin+":"+os.Getenv("PATH"), "TERM=dumb", "LC_ALL=C.UTF-8", "HISTFILE=")
			out, err := cmd.CombinedOutput()
			assert.NilError(t, err, "%s", out)
			var want []string
			for _, row := range rows {
				want = append(want, row.line)
			}
			assert.DeepEqual(t, strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), want)
		})
	}
}
