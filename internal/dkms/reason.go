package dkms

import (
	"dkms2bin/internal/diag"
	"path"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

const (
	maxReason = 200  // runes
	maxLine   = 4096 // bytes of a line that are looked at
)

// noReason stands where neither the log nor dkms says anything.
const noReason = "no reason given"

// Reason returns in one line why a build failed: the first real error in make.log or in what dkms printed
// (its standard output and error, mixed). Either may be empty. The kinds of errors are ranked, because
// make's own "Error 2", a patch that does not apply, or a full disk each look different in order of
// appearance: a cause goes before its consequences, whatever order they come in, and of one rank the first
// counts.
//
// The result is printable text of at most 200 runes without colours, never empty. Compilers' errors end
// in their place: "error: implicit declaration of function 'f' (foo.c:12)", which is that in the module
// where it uses a macro of the kernel. Paths in dkms's build directory and in the kernel's headers are
// shortened to what follows it.
func Reason(makeLog, output string) string {
	var best finding
	best.take(makeLog)
	best.take(output)
	if best.notFound != "" && best.exit127 {
		// A shell that does not find a command is harmless unless make stops there.
		best.offer(rankMissing, best.notFound)
	}
	if best.notFound != "" && (best.text == "" || best.rank == rankMake) {
		best.text = best.notFound
	}
	if best.text == "" {
		best.text = best.last
	}
	if text := tidy(best.text); text != "" {
		return text
	}
	return noReason
}

// Skipped tells from what dkms build printed and its exit code whether dkms would not build the module
// because BUILD_EXCLUSIVE_… in its dkms.conf does not fit the kernel, and gives the reason in one line.
// The code is 77 since dkms 3.0.11 (Debian: 3.0.10); before it was 9, which means other things too and so
// counts only with a text that says it.
func Skipped(exitCode int, output string) (reason string, ok bool) {
	const text = "BUILD_EXCLUSIVE in its dkms.conf does not match this kernel, architecture or configuration"
	said := strings.Contains(output, "BUILD_EXCLUSIVE") || strings.Contains(output, "does not match")
	if exitCode == 77 || exitCode == 9 && said {
		return text, true
	}
	return "", false
}

// A rank orders kinds of errors, the most telling first.
type rank int

const (
	rankMachine rank = iota + 1 // disk full, out of memory: everything else follows from it
	rankCompile                 // compiler, assembler, linker, modpost, configure
	rankMissing                 // a command that make did not find
	rankTool                    // other tools that say error, and make's own texts
	rankDkms                    // dkms's texts that say something
	rankWeak                    // something that failed, perhaps not the first thing
	rankMake                    // make: *** [all] Error 2
)

type finding struct {
	rank     rank
	text     string
	notFound string // the first command that a shell did not find
	exit127  bool   // make saw a command that was not found
	last     string // the last line with anything on it
}

func (f *finding) offer(r rank, text string) {
	if text != "" && (f.text == "" || r < f.rank) {
		f.rank, f.text = r, text
	}
}

// take goes through one text.
func (f *finding) take(text string) {
	lines := newLines(text)
	for lines.next() {
		f.line(lines)
	}
}

// expression is one that is compiled when it is first wanted: most runs want few of
// them, and compiling all takes as long as starting the program.
func expression(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

var (
	compilerError  = expression(`^(\S[^\s:]*):(\d+)(?::\d+)?: (?i:(fatal error|internal compiler error|error)): (.*)$`)
	toolError      = expression(`^\s*(?:[^\s:="'()]+: ?){0,4}(?:(?i:fatal error|internal compiler error)|error|Error|ERROR|FATAL): (.*)$`)
	modpostError   = expression(`^(?:ERROR|FATAL|Error): (?:modpost: )?(.*\[[^\]]*\] undefined!|.*GPL-incompatible module.*|.*\.ko.*symbol.*)$|^(?:ERROR|FATAL): modpost: (.*)$`)
	configureError = expression(`^configure: error: *(.*)$`)
	linkerError    = expression(`^(?:\S*ld(?:\.\w+)?: .*(?:undefined reference to|multiple definition of|cannot find|unrecognized option|unknown argument|relocation truncated).*|\S*ld(?:\.\w+)?: .*: No such file.*|\S+:\(\.[^)]*\): undefined reference to .*)$`)
	machineError   = expression(`^\S.*(?:: No space left on device|: Disk quota exceeded|: Cannot allocate memory|: Read-only file system|Killed signal terminated program|internal compiler error: Killed|virtual memory exhausted)|^cc1\w*: out of memory`)
	makeKilled     = expression(`^make(?:\[\d+\])?: \*\*\* \[(.*)\] (Killed|Terminated|Segmentation fault|Bus error)`)
	makeExit       = expression(`^make(?:\[\d+\])?: \*\*\* \[(.*)\] Error (\d+)`)
	makeText       = expression(`^(?:make(?:\[\d+\])?|([^\s:]+):(\d+)): \*\*\* (.*?)\.? *(?:Stop\.)?$`)
	commandMissing = expression(`^(?:\S*sh|\S*configure|/\S+|\./\S+|env|make(?:\[\d+\])?)(?:: line \d+|: \d+)?: ['‘"]?([^\s:'’"]+)['’"]?: (?:command not found|Command not found|not found|No such file or directory)$`)
	sourceExcerpt  = expression(`^\s*\d* \|`)
	patchFailed    = expression(`^(?:Hunk #\d+ FAILED at .*|patch: \*\*\*\* .*)$`)
	perlMissing    = expression(`^Can't locate (\S+) in @INC`)
	weakError      = expression(`^\S+: (?:(?:cannot|can't) .*|.*: Permission denied|.*: No such file or directory)$`)
)

// telling holds a piece of every line that one of the expressions above fits: logs may be long.
var telling = []string{
	"rror", "RROR", "FATAL", "***", "ld: ", "ld.", "undefined reference", "not found", "No such file", "No space",
	"Disk quota", "memory", "Read-only", "Killed", "FAILED", "Can't", "can't", "cannot", "denied", "Traceback",
}

func (f *finding) line(lines *lines) {
	line := lines.line
	if strings.TrimSpace(line) == "" {
		return
	}
	if useful(line) {
		f.last = line
	}
	if !tells(line) || sourceExcerpt().MatchString(line) {
		return
	}
	switch {
	case strings.HasPrefix(line, "Error!"):
		f.dkmsError(lines)
	case machineError().MatchString(line):
		f.offer(rankMachine, line)
	case strings.HasPrefix(line, "make"):
		f.makeLine(line)
	case strings.Contains(line, "warning: ") || strings.Contains(line, "note: "):
		// gcc words -Werror as an error of its own.
	case strings.HasPrefix(line, "Traceback (most recent call last)"):
		f.offer(rankTool, traceback(lines))
	case compilerError().MatchString(line):
		m := compilerError().FindStringSubmatch(line)
		at := place(m[1], m[2])
		if kernelFile().MatchString(m[1]) {
			at = lines.expansion(at)
		}
		f.offer(rankCompile, strings.ToLower(m[3])+": "+m[4]+at)
	case configureError().MatchString(line):
		text := configureError().FindStringSubmatch(line)[1]
		if text == "" {
			text = lines.following() // zfs puts it on the lines below, after asterisks
		}
		f.offer(rankCompile, "configure: error: "+strings.TrimLeft(text, "* \t"))
	case modpostError().MatchString(line):
		m := modpostError().FindStringSubmatch(line)
		f.offer(rankCompile, "modpost: "+m[1]+m[2])
	case linkerError().MatchString(line):
		f.offer(rankCompile, line)
	case makeText().MatchString(line):
		m := makeText().FindStringSubmatch(line)
		f.offer(rankTool, m[3]+place(m[1], m[2]))
	case toolError().MatchString(line):
		f.offer(rankTool, line)
	case perlMissing().MatchString(line):
		f.offer(rankTool, "perl: cannot find "+perlMissing().FindStringSubmatch(line)[1])
	case commandMissing().MatchString(line):
		f.missing(line)
	case patchFailed().MatchString(line), weakError().MatchString(line):
		f.offer(rankWeak, line)
	}
}

func tells(line string) bool {
	for _, piece := range telling {
		if strings.Contains(line, piece) {
			return true
		}
	}
	return false
}

// useful tells that a line can stand for the reason when nothing better is found.
func useful(line string) bool {
	for _, prefix := range []string{"# elapsed time", "# exit code", "-----", "Consult ", "make: Leaving", "make: Entering", "make[", "done"} {
		if strings.HasPrefix(line, prefix) {
			return false
		}
	}
	return true
}

func (f *finding) missing(line string) {
	if f.notFound == "" {
		f.notFound = "command not found: " + commandMissing().FindStringSubmatch(line)[1]
	}
}

// makeLine reads a line that make printed.
func (f *finding) makeLine(line string) {
	if m := makeExit().FindStringSubmatch(line); m != nil {
		f.exit127 = f.exit127 || m[2] == "127"
		f.offer(rankMake, "make: "+m[1]+": error "+m[2])
		return
	}
	if m := makeKilled().FindStringSubmatch(line); m != nil {
		f.offer(rankMachine, "make: "+m[1]+": "+strings.ToLower(m[2]))
		return
	}
	if m := makeText().FindStringSubmatch(line); m != nil {
		switch {
		case strings.HasPrefix(m[3], "Waiting for unfinished jobs"), strings.HasPrefix(m[3], "wait: "):
		case strings.HasPrefix(m[3], "No targets"):
			// The step before left nothing to build, and says why somewhere else.
			f.offer(rankWeak, m[3])
		default:
			f.offer(rankTool, m[3])
		}
		return
	}
	if commandMissing().MatchString(line) {
		f.exit127 = true // make itself says so of its own recipes only
		f.missing(line)
	}
}

// dkmsError reads "Error! text" and the lines that belong to it.
func (f *finding) dkmsError(lines *lines) {
	text := strings.TrimSpace(strings.TrimPrefix(lines.line, "Error!"))
	if text == "echo" { // sic, dkms 2.2 to 2.8
		text = ""
	}
	for n := 0; n < 4 && lines.peek() != "" && !strings.HasPrefix(lines.peek(), "Error!"); n++ {
		lines.next()
		text = strings.TrimSpace(text + " " + strings.TrimSpace(lines.line))
	}
	for _, advice := range []string{" Consult ", " Check /", " Make sure ", " Please install ", " You may override "} {
		text, _, _ = strings.Cut(text, advice)
	}
	text = strings.TrimSuffix(text, ".")
	switch {
	case text == "", strings.Contains(text, "Bad return status"), strings.Contains(text, "failed to install during autoinstall"):
		// The reason lies elsewhere.
	case strings.HasPrefix(text, "Build of "):
		f.offer(rankWeak, text)
	case strings.HasPrefix(text, "Application of patch"):
		f.offer(rankTool, text)
	default:
		f.offer(rankDkms, text)
	}
}

// traceback returns the exception at the end of a Python traceback.
func traceback(lines *lines) string {
	for n := 0; n < 1000 && lines.next(); n++ {
		switch {
		case lines.line == "" || unicode.IsSpace(rune(lines.line[0])):
		default:
			return lines.line
		}
	}
	return ""
}

// place is the end of a message that says where it comes from.
func place(file, line string) string {
	if file == "" || strings.HasPrefix(file, "/tmp/") { // the compiler's temporary file
		return ""
	}
	return " (" + path.Clean(kernelDir().ReplaceAllString(shorten(file), "")) + ":" + line + ")"
}

// expansion returns where the module uses the macro of the kernel in which the
// compiler found the error of the current line; else otherwise.
func (l *lines) expansion(otherwise string) string {
	ahead := *l
	for n := 0; n < 40 && ahead.next() && !compilerError().MatchString(ahead.line); n++ {
		if m := macroExpansion().FindStringSubmatch(ahead.line); m != nil && !kernelFile().MatchString(m[1]) {
			return place(m[1], m[2])
		}
	}
	return otherwise
}

var (
	kernelFile     = expression(`^(?:/usr/src/linux-|/lib/modules/|/usr/lib/modules/|(?:\./)?(?:include|arch)/)`)
	macroExpansion = expression(`^(\S[^\s:]*):(\d+)(?::\d+)?: note: (?:in expansion of|expanded from) macro `)
	kernelDir      = expression(`^/usr/src/linux-[^/]+/`)
)

var (
	buildDir  = expression(`/var/lib/dkms/[^/\s]+/[^/\s]+/build/(?:\./)?`)
	colours   = expression(`\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])`)
	secondary = expression(` \{aka '[^}]*'\}| \[-W[^\]]*\]`)
	quotes    = strings.NewReplacer("‘", "'", "’", "'", "`", "'")
)

func shorten(s string) string { return buildDir().ReplaceAllString(s, "") }

// tidy makes one printable line of a text.
func tidy(s string) string {
	s = diag.Printable(quotes.Replace(shorten(s)))
	if utf8.RuneCountInString(s) <= maxReason {
		return s
	}
	// What the compiler says twice, and by which option, goes first.
	if s = secondary().ReplaceAllString(s, ""); utf8.RuneCountInString(s) <= maxReason {
		return s
	}
	// The place at the end says more than the end of the text.
	at := ""
	if i := strings.LastIndex(s, " ("); i > 0 && strings.HasSuffix(s, ")") && utf8.RuneCountInString(s[i:]) < maxReason/2 {
		s, at = s[:i], s[i:]
	}
	runes := []rune(s)
	return strings.TrimSpace(string(runes[:maxReason-1-utf8.RuneCountInString(at)])) + "…" + at
}

// lines goes through a text line by line, without colours and carriage returns.
type lines struct {
	rest string
	line string
}

func newLines(text string) *lines { return &lines{rest: text} }

func (l *lines) next() bool {
	if l.rest == "" {
		return false
	}
	l.line, l.rest = cutLine(l.rest)
	return true
}

// peek returns the next line, "" at the end.
func (l *lines) peek() string {
	line, _ := cutLine(l.rest)
	return strings.TrimSpace(line)
}

// following moves to the next line with anything on it and returns it.
func (l *lines) following() string {
	for n := 0; n < 5 && l.next(); n++ {
		if text := strings.Trim(l.line, "* \t"); text != "" {
			return text
		}
	}
	return ""
}

func cutLine(text string) (line, rest string) {
	line, rest, _ = strings.Cut(text, "\n")
	if len(line) > maxLine {
		line = line[:maxLine]
	}
	line = strings.TrimRight(line, "\r \t")
	if strings.ContainsAny(line, "\x1b\r") {
		line = colours().ReplaceAllString(line, "")
		line = line[strings.LastIndexByte(line, '\r')+1:] // what a terminal would show in the end
	}
	return line, rest
}
