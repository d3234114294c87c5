package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"
)

// EnvPrefix begins the names of the environment variables of all flags:
// DKMS2BIN_OUT_DIR is --out-dir.
const EnvPrefix = "DKMS2BIN"

// A List is a flag that takes one or more values and may be repeated. In the
// environment the values stand one on a line.
type List []string

func (l *List) String() string { return strings.Join(*l, " ") }

// Set adds a value.
func (l *List) Set(v string) error {
	if v == "" {
		return fmt.Errorf("empty value")
	}
	*l = append(*l, v)
	return nil
}

type options struct {
	operands       []string
	check, version bool
	usage          string
	flags          *flag.FlagSet
}

// keys are the flags of all programs: one configuration file serves them all,
// so each program passes over those of the others.
var keys = []string{
	"audit", "auth-conf", "base", "build-package", "cache", "cache-dir", "cache-size", "direct-repo-addr", "dkms", "dry-run",
	"grace-period", "headers", "http-proxy", "https-proxy", "image-dependency", "in-place", "index-description", "index-url",
	"initramfs", "jobs", "keep", "keep-kernels", "keep-versions", "kernel-flavor", "kver", "load-cert", "log-dir",
	"no-cache", "older-than", "out-dir", "provide-dkms", "release", "repo", "set", "settings", "shell", "sign-cert",
	"sign-command", "sign-key", "sign-passphrase-file", "sign-with", "stale", "timeout", "verify", "version-suffix",
	"work-dir",
}

// aliases are other names of flags, on the command line and in the configuration
// file, by those that fuel-bootstrap has.
var aliases = map[string]string{"ubuntu-release": "release"}

// unaliased gives the arguments with the flags' own names.
func unaliased(args []string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		if arg == "--" {
			break
		}
		word, value, hasValue := strings.Cut(arg, "=")
		name := aliases[strings.TrimLeft(word, "-")]
		if !strings.HasPrefix(word, "-") || name == "" {
			continue
		}
		if out[i] = "--" + name; hasValue {
			out[i] += "=" + value
		}
	}
	return out
}

func parseFlags(p Program, args []string) (options, error) {
	var opts options
	fs := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are printed once, by Run
	if p.Flags != nil {
		p.Flags(fs)
	}
	fs.String("config", "", "`file` with one flag and its value on a line, without the dashes")
	fs.BoolVar(&opts.check, "check", false, "only check the flags and what they name on this host, and print those that are set as a file for --config")
	fs.BoolVar(&opts.version, "version", false, "print the version and exit")
	opts.usage, opts.flags = usage(p, fs), fs

	// What is done once must not be done by every program because of a profile.
	for _, action := range []string{"AUDIT", "CHECK", "DRY_RUN", "KEEP", "SHELL", "STALE", "VERIFY", "VERSION"} {
		os.Unsetenv(EnvPrefix + "_" + action)
	}
	err := ff.Parse(fs, spreadLists(fs, unaliased(args)),
		ff.WithEnvVarPrefix(EnvPrefix), ff.WithEnvVarSplit("\n"),
		ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(knownKeys(fs)))
	opts.operands = fs.Args()
	if errors.Is(err, flag.ErrHelp) {
		return opts, flag.ErrHelp
	}
	if err != nil {
		return opts, readable(fs, err)
	}
	if len(opts.operands) > 0 && p.Operands == "" {
		return opts, Usagef("unexpected operand %q", opts.operands[0])
	}
	return opts, nil
}

var flagErrors = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`^error parsing (?:commandline arguments|environment|config file): `), ""},
	{regexp.MustCompile(`^flag provided but not defined: -+`), "unknown flag --"},
	{regexp.MustCompile(`^invalid (?:boolean )?value (".*") for (?:flag )?-([a-z-]+): (.*)$`), "--$2 $1: $3"},
	{regexp.MustCompile(`^flag needs an argument: -`), "a value is missing for --"},
}

// readable puts the errors of the flag packages into this project's words.
func readable(fs *flag.FlagSet, err error) error {
	text := err.Error()
	for _, f := range flagErrors {
		text = f.pattern.ReplaceAllString(text, f.text)
	}
	if start, ok := strings.CutSuffix(text, ": parse error"); ok {
		name, _, _ := strings.Cut(strings.TrimPrefix(start, "--"), " ")
		var value any
		if f := fs.Lookup(name); f != nil {
			if v, ok := f.Value.(flag.Getter); ok {
				value = v.Get()
			}
		}
		switch value.(type) {
		case time.Duration:
			text = start + ": not a time such as 90s, 30m or 168h"
		case int:
			text = start + ": not a whole number"
		case bool:
			text = start + ": neither true nor false"
		}
	}
	return &UsageError{errors.New(text)}
}

// knownKeys is ff's plain format, without the keys that belong to other
// programs only.
func knownKeys(fs *flag.FlagSet) ff.ConfigFileParser {
	return func(r io.Reader, set func(name, value string) error) error {
		return ff.PlainParser(r, func(name, value string) error {
			if of := aliases[name]; of != "" {
				name = of
			}
			if fs.Lookup(name) == nil && slices.Contains(keys, name) {
				return nil
			}
			return set(name, value)
		})
	}
}

// spreadLists turns "--dkms a b" into "--dkms a --dkms b" for list flags.
func spreadLists(fs *flag.FlagSet, args []string) []string {
	var out []string
	list := "" // the list flag whose further values may follow
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		if list != "" && !strings.HasPrefix(arg, "-") {
			out = append(out, list, arg)
			continue
		}
		list = ""
		if !strings.HasPrefix(arg, "-") {
			return append(out, args[i:]...) // operands
		}
		out = append(out, arg)
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		f := fs.Lookup(name)
		if f == nil {
			continue
		}
		_, isList := f.Value.(*List)
		isBool := false
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok {
			isBool = b.IsBoolFlag()
		}
		if !hasValue && !isBool && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
		if isList {
			list = "--" + name
		}
	}
	return out
}

// settings are the flags that were set, wherever, as lines of a configuration file.
// What such a file cannot hold becomes a comment.
func settings(fs *flag.FlagSet) string {
	var b strings.Builder
	fs.Visit(func(f *flag.Flag) {
		if slices.Contains([]string{"check", "config", "version"}, f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(*List); ok {
			values = *list
		}
		for _, v := range values {
			if v == "" || v != strings.TrimSpace(v) || strings.Contains(v, " #") || strings.ContainsAny(v, "\n\r") {
				fmt.Fprintf(&b, "# %s: its value cannot stand in a file\n", f.Name)
				continue
			}
			fmt.Fprintf(&b, "%s %s\n", f.Name, v)
		}
	})
	return b.String()
}

// asTyped writes times of the package time, which a line ends with, as people do: 30m, 24h.
var asTyped = strings.NewReplacer("h0m0s\n", "h", "m0s\n", "m", "\n", "")

func usage(p Program, fs *flag.FlagSet) string {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: %s [flags]", p.Name)
	if p.Operands != "" {
		fmt.Fprintf(&b, " [%s]", p.Operands)
	}
	if !p.Starts {
		b.WriteString(" <document")
	}
	fmt.Fprintf(&b, " >document\n\n%s\n\nFlags (most also from the environment, as %s_NAME):\n", strings.TrimSpace(p.Manual), EnvPrefix)
	fs.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		line := "  --" + f.Name
		if name != "" {
			line += " " + name
		}
		if _, ok := f.Value.(*List); ok {
			line += "..."
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			text += fmt.Sprintf(" (default %s)", asTyped.Replace(f.DefValue+"\n"))
		}
		fmt.Fprintf(&b, "%s\n        %s\n", line, text)
	})
	b.WriteString("\nExit status: 0 all done; 1 an error is recorded in the document; 2 wrong usage or\nunusable document; 3 done, but some modules failed, files were left out of the\nindex, or an audit found something wrong; 130 interrupted.\n")
	return b.String()
}

// Required is a usage error when a flag that must be given is not.
func Required(name, value string) error {
	if value == "" {
		return Usagef("--%s is required", name)
	}
	return nil
}
