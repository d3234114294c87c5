package apt

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// A target is the index of one component of a source, by what Release says.
type target struct {
	source int // its number
	fields []field
}

// A field is one condition of a pin, such as "o=Debian".
type field struct{ name, value string }

// targetFormat are the fields for "Pin: release", and the key of the source.
const targetFormat = "$(REPO_URI)\t$(RELEASE)\to=$(ORIGIN)\tl=$(LABEL)\ta=$(SUITE)\tn=$(CODENAME)\tv=$(VERSION)\tc=$(COMPONENT)"

// Pins gives the preferences, apt_preferences(5), that bring the sources'
// priorities about, once their indexes have been fetched. A pin cannot name a
// source: it fits by what the Release files say, and if others say the same, by
// the server's name. The second result tells of pins that fit others all the same.
func (i Inside) Pins(ctx context.Context, sources []Source) (preferences []byte, warnings []string, err error) {
	out, err := i.Output(ctx, "apt-get", "indextargets", "--format", targetFormat, "Created-By: Packages")
	if err != nil {
		return nil, nil, err
	}
	preferences, warnings = pins(sources, parseTargets(sources, string(out)))
	return preferences, warnings, nil
}

func parseTargets(sources []Source, out string) []target {
	numbers := map[[2]string]int{}
	for i, s := range sources {
		numbers[originKey(s.URI, s.Suite)] = i
	}
	var targets []target
	for line := range strings.Lines(out) {
		words := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(words) < 2 {
			continue
		}
		n, ok := numbers[originKey(words[0], words[1])]
		if !ok {
			continue
		}
		t := target{source: n}
		for _, word := range words[2:] {
			name, value, _ := strings.Cut(word, "=")
			// What is not in Release is left as it stands in the format. No
			// condition can have a comma in it.
			if value != "" && !strings.HasPrefix(value, "$(") && !strings.Contains(value, ",") {
				t.fields = append(t.fields, field{name, value})
			}
		}
		targets = append(targets, t)
	}
	return targets
}

func pins(sources []Source, targets []target) (preferences []byte, warnings []string) {
	var b strings.Builder
	b.WriteString("# The priorities of the repositories, by dkms2bin.\n")
	for _, t := range targets {
		s := sources[t.source]
		if s.Priority == 0 {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(targets), func(o target) bool { return sources[o.source].Priority == s.Priority })
		byRelease := func(o target) bool {
			return !slices.ContainsFunc(t.fields, func(f field) bool { return !slices.Contains(o.fields, f) })
		}
		site := hostOf(s.URI)
		bySite := func(o target) bool { return hostOf(sources[o.source].URI) == site }
		pin, fits := releasePin(t.fields), byRelease
		if len(t.fields) == 0 || slices.ContainsFunc(others, byRelease) && !slices.ContainsFunc(others, bySite) {
			pin, fits = fmt.Sprintf("origin %q", site), bySite
		}
		for _, o := range others {
			if fits(o) {
				warnings = append(warnings, fmt.Sprintf("the priority %d of %s holds for %s, too: apt cannot tell them apart", s.Priority, s, sources[o.source]))
			}
		}
		fmt.Fprintf(&b, "\nPackage: *\nPin: %s\nPin-Priority: %d\n", pin, s.Priority)
	}
	slices.Sort(warnings)
	return []byte(b.String()), slices.Compact(warnings)
}

func releasePin(fields []field) string {
	var conditions []string
	for _, f := range fields {
		conditions = append(conditions, f.name+"="+f.value)
	}
	return "release " + strings.Join(conditions, ",")
}

// hostOf is the server's name as apt knows it: "" for local repositories.
func hostOf(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
