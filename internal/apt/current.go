package apt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"time"
)

// listsPath is where apt has its package lists, relative to the root.
const listsPath = "var/lib/apt/lists"

// currentScript fetches files by apt's helper, all at the same time: URIs, names and
// digests. A server that keeps apt waiting is for apt to deal with. Proxies must not
// answer from what they have: that these are Release files, apt does not tell them here.
const currentScript = `while [ $# -gt 0 ]; do
	/usr/lib/apt/apt-helper -q -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 \
		-o Acquire::http::No-Cache=true -o Acquire::https::No-Cache=true download-file "$1" "$2" "$3" &
	all="${all-} $!"
	shift 3
done
for one in $all; do wait "$one" || exit 1; done`

// Current says whether the package lists in the root are those that the repositories
// have now: whether each of these, as it is called there, still publishes the very
// Release file that apt has checked once. That names the digests of all lists, and apt
// would but check its signatures anew, most of what apt-get update does then. False
// says that apt has to look: also where the Release file has run out, or is in the older
// form of two files, or on this machine's disk.
func (i Inside) Current(ctx context.Context, sources []Source) (bool, error) {
	args := []string{"sh", "-c", currentScript, "sh"}
	for n, s := range sources {
		release, err := i.releaseText(s)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		case Directory(s.URI) != "" || s.Options["InRelease-Path"] != "" || s.Options["Valid-Until-Max"] != "" || runsOut(release, time.Now()):
			return false, nil
		}
		args = append(args, s.directory()+"InRelease", fmt.Sprintf("/tmp/InRelease-%d", n), fmt.Sprintf("SHA256:%x", sha256.Sum256(release)))
	}
	_, err := i.command(ctx, true, args...)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return err == nil, nil
}

// releaseText reads the Release file of a source that a command in the root would see.
func (i Inside) releaseText(s Source) (text []byte, err error) {
	for _, layer := range append([]string{i.Spec.Root.Upper}, i.Spec.Root.Layers...) {
		text, err = readIn(layer, path.Join(listsPath, releaseFile(s, "InRelease")))
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return text, err
}

var validUntil = regexp.MustCompile(`(?m)^Valid-Until: *(.*\S)`)

// runsOut says whether a Release file is valid no longer, or until a time that cannot
// be read.
func runsOut(release []byte, now time.Time) bool {
	m := validUntil.FindSubmatch(release)
	if m == nil {
		return false
	}
	until, err := time.Parse(time.RFC1123, string(m[1]))
	return err != nil || now.After(until)
}
