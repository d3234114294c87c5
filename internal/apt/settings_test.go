package apt

import (
	"os"
	"path/filepath"
	"testing"

	"gotest.tools/v3/assert"
)

// fuelFile has the shape of the file that Fuel installs.
const fuelFile = `---
# User can pass any type of executable script
#post_script_file: /tmp/my_custom_script
root_ssh_authorized_file: /root/.ssh/id_rsa.pub
extend_kopts: "biosdevname=0 debug LOGLEVEL=8"
extra_dirs:
  - /usr/share/fuel_bootstrap_cli/files/trusty
kernel_flavor: linux-image-generic-lts-xenial
packages:
  - live-boot
skip_default_img_build: true
direct_repo_addresses:
  - 127.0.0.1
  - 10.20.0.2
http_proxy: "192.168.1.50:8080"
https_proxy: null
ubuntu_release: trusty
repos:
  -
    name: ubuntu
    priority: null
    section: "main universe multiverse"
    suite: trusty
    type: deb
    uri: "http://example.org/ubuntu"
  -
    name: ubuntu-source
    section: main
    suite: trusty
    type: deb-src
    uri: "http://example.org/ubuntu"
  -
    name: mos
    priority: "1050"
    section: "main restricted"
    suite: mos9.0
    type: deb
    uri: "http://example.org/mos-repos/ubuntu/9.0"
  -
    name: flat
    priority: 1100
    section: ""
    suite: ./
    type: deb
    uri: http://example.org/6.10
    trusted: yes
    arch: [amd64, i386]
  -
    name: holdback
    priority: None
    section: null
    suite: rel/6.10/
    uri: http://example.org/
`

func TestReadSettings(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fuel_bootstrap_cli.yaml")
	assert.NilError(t, os.WriteFile(path, []byte(fuelFile), 0o600))
	got, err := ReadSettings(path)
	assert.NilError(t, err)
	assert.DeepEqual(t, got, Settings{
		Release: "trusty", Flavour: "linux-image-generic-lts-xenial", HTTPProxy: "192.168.1.50:8080", Direct: []string{"127.0.0.1", "10.20.0.2"},
		Sources: []Source{
			{"http://example.org/ubuntu", "trusty", []string{"main", "universe", "multiverse"}, opts{}, 0},
			{"http://example.org/mos-repos/ubuntu/9.0", "mos9.0", []string{"main", "restricted"}, opts{}, 1050},
			{"http://example.org/6.10", "./", []string{}, opts{"Trusted": "yes", "Architectures": "amd64 i386"}, 1100},
			{"http://example.org/", "rel/6.10/", []string{}, opts{}, 0},
		},
	})
	_, err = ReadSettings("/nonexistent")
	assert.ErrorContains(t, err, "cannot read the settings /nonexistent: ")
}

func TestParseSettings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       Settings
		err        string
	}{
		{"empty", "", Settings{}, ""},
		{"only comments", "---\n# nothing\n", Settings{}, ""},
		{"numbers are text", "ubuntu_release: 6.10\nkernel_flavor: 0755\n", Settings{Release: "6.10", Flavour: "0755"}, ""},
		{"booleans are text", "ubuntu_release: on\n", Settings{Release: "on"}, ""},
		{"one word for a list", "direct_repo_addresses: 10.0.0.1, example.org\n", Settings{Direct: []string{"10.0.0.1", "example.org"}}, ""},
		{"nothing for a list", "direct_repo_addresses:\nrepos:\n", Settings{}, ""},
		{"an alias", "http_proxy: &p http://example.org:1\nhttps_proxy: *p\n", Settings{HTTPProxy: "http://example.org:1", HTTPSProxy: "http://example.org:1"}, ""},
		{"other keys may be anything", "fuel_access: {user: admin, password: [x]}\n? [a]\n: b\n", Settings{}, ""},
		{"a list", "- a\n", Settings{}, "line 1: keys with values are expected"},
		{"not YAML", "a: b: c\n", Settings{}, "yaml: "},
		{"twice", "http_proxy: a\nhttp_proxy: b\n", Settings{}, `line 2: "http_proxy" stands there twice`},
		{"a list for a value", "ubuntu_release: [a]\n", Settings{}, "ubuntu_release: line 1: a single value is expected"},
		{"no list of repositories", "repos: deb\n", Settings{}, "repos: line 1: a list is expected"},
		{"no uri", "repos: [{name: a, suite: x}]\n", Settings{}, "repos: repository a: it has no uri or no suite"},
		{"no components", "repos: [{suite: x, uri: 'http://example.org/'}]\n", Settings{}, `repository 1: cannot read the repository "deb http://example.org/ x"`},
		{"priority", "repos: [{suite: ./, uri: 'http://example.org/', priority: high}]\n", Settings{}, `the priority "high" is none of apt's`},
		{"type", "repos: [{type: rpm, suite: ./, uri: 'http://example.org/'}]\n", Settings{}, `its type is "rpm"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseSettings([]byte(tt.text))
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			assert.NilError(t, err)
			assert.DeepEqual(t, got, tt.want)
		})
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add(fuelFile)
	f.Add("a: &a [*a]\nrepos: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSettings([]byte(text))
		if err != nil {
			return
		}
		for _, source := range s.Sources {
			if err := source.check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestFlavourOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"": "", "generic": "generic", "linux-image-generic-lts-xenial": "generic-lts-xenial", "linux-headers-amd64": "amd64", "cloud-amd64": "cloud-amd64",
	} {
		assert.Equal(t, FlavourOf(name), want)
	}
}
