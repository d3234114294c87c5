package apt

import (
	"dkms2bin/internal/diag"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// FuelSettings is where Fuel keeps its settings.
const FuelSettings = "/etc/fuel-bootstrap-cli/fuel_bootstrap_cli.yaml"

// Settings are what fuel-bootstrap's file says of repositories and kernels.
type Settings struct {
	Sources               []Source
	Release               string // suite of the distribution's repository
	Flavour               string // of the kernel
	HTTPProxy, HTTPSProxy string
	Direct                []string // hosts that are asked without a proxy
}

// ReadSettings reads fuel-bootstrap's file. Keys that it does not know are
// passed over. All scalars are taken as the text that stands there.
func ReadSettings(path string) (s Settings, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot read the settings %s: %w", path, err)
		}
	}()
	text, err := readFile(path)
	if err != nil {
		return s, err
	}
	return parseSettings(text)
}

func parseSettings(text []byte) (s Settings, err error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return s, err
	}
	if len(document.Content) == 0 || resolved(document.Content[0]).ShortTag() == "!!null" {
		return s, nil // nothing but comments
	}
	err = eachKey(document.Content[0], func(key string, value *yaml.Node) (err error) {
		switch key {
		case "repos":
			s.Sources, err = settingsSources(value)
		case "ubuntu_release":
			s.Release, err = scalar(value)
		case "kernel_flavor":
			s.Flavour, err = scalar(value)
		case "http_proxy":
			s.HTTPProxy, err = scalar(value)
		case "https_proxy":
			s.HTTPSProxy, err = scalar(value)
		case "direct_repo_addresses":
			s.Direct, err = scalars(value)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
		return err
	})
	return s, err
}

// eachKey goes through a mapping. A key that stands there twice is an error, as
// one of the two would be lost.
func eachKey(n *yaml.Node, f func(key string, value *yaml.Node) error) error {
	n = resolved(n)
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: keys with values are expected", n.Line)
	}
	if len(n.Content) > 2*maxKeys {
		return fmt.Errorf("line %d: more than %d keys", n.Line, maxKeys)
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key := resolved(n.Content[i])
		if seen[key.Value] {
			return fmt.Errorf("line %d: %q stands there twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if err := f(key.Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// resolved follows an alias, which leads to no other one.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// scalar is the text of a value; null, and what Python prints for it, are "".
func scalar(n *yaml.Node) (string, error) {
	n = resolved(n)
	if n.Kind != yaml.ScalarNode {
		return "", fmt.Errorf("line %d: a single value is expected", n.Line)
	}
	text := strings.TrimSpace(n.Value)
	if n.ShortTag() == "!!null" || text == "None" {
		return "", nil
	}
	return text, nil
}

// scalars are the words of one value, or of a list of them.
func scalars(n *yaml.Node) ([]string, error) {
	n = resolved(n)
	items := n.Content
	if n.Kind != yaml.SequenceNode {
		items = []*yaml.Node{n}
	}
	var words []string
	for _, item := range items {
		text, err := scalar(item)
		if err != nil {
			return nil, err
		}
		words = append(words, strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })...)
	}
	return words, nil
}

// Bounds on a settings file. By aliases a short one may have much.
const (
	maxSources = 1000 // repositories
	maxKeys    = 1000 // of each
)

func settingsSources(n *yaml.Node) ([]Source, error) {
	n = resolved(n)
	if n.ShortTag() == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: a list is expected", n.Line)
	}
	if len(n.Content) > maxSources {
		return nil, fmt.Errorf("line %d: more than %d repositories", n.Line, maxSources)
	}
	var sources []Source
	for i, item := range n.Content {
		s, kind, name, err := settingsSource(item)
		if err != nil {
			return nil, fmt.Errorf("repository %s: %w", orNumber(name, i+1), err)
		}
		if kind != "deb-src" {
			sources = append(sources, s)
		}
	}
	return sources, nil
}

func orNumber(name string, n int) string {
	if name == "" {
		return strconv.Itoa(n)
	}
	return name
}

// settingsSource reads one repository. Besides Fuel's keys it takes the options
// of the one-line format, which Fuel passes over.
func settingsSource(n *yaml.Node) (s Source, kind, name string, err error) {
	kind = "deb"
	var uri, suite, priority string
	var sections []string
	options := map[string]string{}
	err = eachKey(n, func(key string, value *yaml.Node) (err error) {
		switch key {
		case "name":
			name, err = scalar(value)
		case "type":
			kind, err = scalar(value)
		case "uri":
			uri, err = scalar(value)
		case "suite":
			suite, err = scalar(value)
		case "section":
			sections, err = scalars(value)
		case "priority":
			priority, err = scalar(value)
		default:
			if field := optionNames[key]; field != "" {
				var words []string
				words, err = scalars(value)
				options[field] = strings.Join(words, " ")
			}
		}
		return err
	})
	if err != nil || kind == "deb-src" {
		return s, kind, name, err
	}
	if uri == "" || suite == "" {
		return s, kind, name, errors.New("it has no uri or no suite")
	}
	if s, err = ParseLine(strings.Join(append([]string{kind, uri, suite}, sections...), " ")); err != nil {
		return s, kind, name, diag.WithHint(err, "the keys of a repository are name, type (deb), uri, suite, section and priority")
	}
	for field, value := range options {
		s = s.With(field, value)
	}
	if priority != "" {
		s.Priority, err = parsePriority(priority)
	}
	return s, kind, name, err
}

// FlavourOf is the kernel flavour that a name stands for: "generic-lts-xenial"
// for linux-image-generic-lts-xenial, as Fuel's settings have it, for its headers
// package, and for itself.
func FlavourOf(name string) string {
	for _, prefix := range []string{"linux-image-", "linux-headers-"} {
		if flavour, ok := strings.CutPrefix(name, prefix); ok {
			return flavour
		}
	}
	return name
}
