//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"dkms2bin/internal/status"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gotest.tools/v3/assert"
)

// A machine has mounts and processes of its own, and is lost with all of these at a
// stroke, also when the test dies.
type machine struct {
	name string
	cmd  *exec.Cmd
}

// boot starts a machine that runs the shell's script, with the words behind it.
func boot(t *testing.T, name, log, script string, words ...string) *machine {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	assert.NilError(t, err)
	defer f.Close()
	m := &machine{name: name, cmd: exec.Command("unshare", append([]string{
		"--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-ec", script, "sh",
	}, words...)...)}
	m.cmd.Stdout, m.cmd.Stderr = f, f
	m.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	assert.NilError(t, m.cmd.Start())
	t.Cleanup(func() {
		m.lose()
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, text)
		}
	})
	return m
}

// runs says whether a process on the machine has this command line.
func (m *machine) runs(line string) bool {
	return slices.Contains(descendants(m.cmd.Process.Pid), line+" ")
}

// lose ends the machine.
func (m *machine) lose() {
	if m.cmd.ProcessState != nil {
		return // lost before
	}
	ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", m.cmd.Process.Pid))
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	for left := true; left; time.Sleep(10 * time.Millisecond) {
		links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
		left = slices.ContainsFunc(links, func(l string) bool {
			of, err := os.Readlink(l)
			return err == nil && of == ns
		})
	}
}

// freePort is a port of the loopback interface that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A cluster is slurmctld, munged and nodes that have directories for trees and
// caches of their own.
type cluster struct {
	dir   string
	nodes map[string]*machine
}

// slurmNode mounts the node's own directory, $2, and where there is one a cache that
// all nodes share, $3, in the places where they are by default.
const slurmNode = `mount --bind "$2" /var/cache/dkms2bin
[ -z "$3" ] || mount --bind "$3" /var/cache/dkms2bin/cache
unset DKMS2BIN_CACHE_DIR
slurmd -D -N "$1" & wait`

// newCluster starts a cluster whose nodes share the cache, unless that is "".
func newCluster(t *testing.T, cache string, names ...string) *cluster {
	t.Helper()
	c := &cluster{dir: filepath.Join(workDir, "..", strings.ToLower(t.Name())), nodes: map[string]*machine{}}
	assert.NilError(t, os.MkdirAll(c.dir, 0o755))
	t.Cleanup(func() { assert.NilError(t, os.RemoveAll(c.dir)) })
	key := make([]byte, 1024)
	_, err := rand.Read(key)
	assert.NilError(t, err)
	assert.NilError(t, os.WriteFile(filepath.Join(c.dir, "munge.key"), key, 0o400))
	assert.NilError(t, os.Mkdir(filepath.Join(c.dir, "state"), 0o755))
	host, err := os.Hostname()
	assert.NilError(t, err)
	host, _, _ = strings.Cut(host, ".") // as Slurm has it
	config := fmt.Sprintf(`ClusterName=test
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldHost=%[2]s(127.0.0.1)
SlurmctldPort=%[3]d
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=%[1]s/munge.socket
CredType=cred/munge
StateSaveLocation=%[1]s/state
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/%%n.pid
SlurmdSpoolDir=%[1]s/spool-%%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
MailProg=/bin/true
PartitionName=build Nodes=ALL Default=YES
`, c.dir, host, freePort(t))
	for _, name := range names {
		assert.NilError(t, os.MkdirAll(filepath.Join(c.dir, "spool-"+name), 0o755))
		config += fmt.Sprintf("NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%d CPUs=1 State=UNKNOWN\n", name, host, freePort(t))
	}
	assert.NilError(t, os.WriteFile(filepath.Join(c.dir, "slurm.conf"), []byte(config), 0o644))
	boot(t, "controller", filepath.Join(c.dir, "controller"), `cd "$1"
munged --foreground --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" --log-file="$1/munged.log" --seed-file="$1/munged.seed" &
while [ ! -S munge.socket ]; do sleep 0.1; done
SLURM_CONF=$1/slurm.conf slurmctld -D & wait`, c.dir)
	const place = "/var/cache/dkms2bin" // where nothing is changed: nodes have it elsewhere
	if err := os.Mkdir(place, 0o755); err == nil {
		t.Cleanup(func() { _ = os.Remove(place) })
	}
	for _, name := range names {
		own := c.own(name)
		assert.NilError(t, os.MkdirAll(filepath.Join(own, "cache"), 0o755))
		t.Cleanup(func() { // with the cache, there are layers in it
			if cache == "" {
				mustRun(t, filepath.Join(bin, "rmchroot"), "--cache", "--cache-dir", filepath.Join(own, "cache"))
			}
		})
		c.start(t, name, cache)
	}
	waitFor(t, func() bool {
		return strings.Count(c.ask(t, "sinfo", "--noheader", "--Node", "--format=%T"), "idle\n") == len(names)
	})
	return c
}

func (c *cluster) own(node string) string { return filepath.Join(c.dir, "own-"+node) }

func (c *cluster) start(t *testing.T, node, cache string) {
	t.Helper()
	c.nodes[node] = boot(t, node, filepath.Join(c.dir, node), "export SLURM_CONF='"+c.dir+"/slurm.conf'\n"+slurmNode, node, c.own(node), cache)
}

// env is that of those who use the cluster.
func (c *cluster) env() []string {
	return []string{"SLURM_CONF=" + c.dir + "/slurm.conf", "DKMS2BIN_CACHE_DIR="}
}

// ask runs one of Slurm's commands. It may come before the controller is up.
func (c *cluster) ask(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), c.env()...)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// slowPackage is the .deb slow-dkms of a module whose build takes a while, to be seen
// by its sleep.
func slowPackage(t *testing.T, seconds string) string {
	t.Helper()
	root := t.TempDir()
	assert.NilError(t, os.MkdirAll(filepath.Join(root, "usr/src"), 0o755))
	files := goodModule("slow")
	files["dkms.conf"] += "PRE_BUILD=\"slow\"\n"
	files["slow"] = "#!/bin/sh\nexec sleep " + seconds + "\n"
	src := source(t, "slow-1.0", files)
	assert.NilError(t, os.Chmod(filepath.Join(src, "slow"), 0o755))
	mustRun(t, "cp", "-a", src, filepath.Join(root, "usr/src"))
	return makeDeb(t, t.TempDir(), root, "slow-dkms", "1.0-1", "Architecture: all\nDepends: dkms\n", nil)
}

// builtIn is what the repository's records say, as "kernel package status".
func builtIn(t *testing.T, out string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "status.json"))
	assert.NilError(t, err)
	s, err := status.Parse(text)
	assert.NilError(t, err)
	found := map[string]bool{}
	for _, r := range s.Records {
		found[strings.Join([]string{r.Kernel, r.Package, r.Status}, " ")] = true
	}
	return found
}

// TestSlurm builds on three nodes, of which one is lost while it builds; then what is
// missing. Nightly the nodes begin with empty caches, Slurm finds out by itself that a
// node is gone, which takes it minutes, and a run is interrupted.
func TestSlurm(t *testing.T) {
	t.Parallel()
	nightly := os.Getenv("DKMS2BIN_NIGHTLY") != ""
	sharedTree(t) // the cache has what it is made of
	cache := cacheTo
	if nightly {
		cache = ""
	}
	c := newCluster(t, cache, "n1", "n2", "n3")
	kernels := []string{currentKernel(t, "amd64"), currentKernel(t, "cloud-amd64")}
	out := filepath.Join(t.TempDir(), "modules")
	slow := slowPackage(t, "5.0625")
	const sleeping = "sleep 5.0625"
	args := func(kernels []string, more ...string) []string {
		return append(append([]string{"--out-dir", out, "--wait", "--dkms", slow, "--kver"}, kernels...), more...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	start := func(args []string) (run *exec.Cmd, said *bytes.Buffer) {
		run, said = command{name: "dkms2bin-slurm", args: args, env: c.env()}.command(ctx), &bytes.Buffer{}
		run.Stderr, run.SysProcAttr = said, &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
		assert.NilError(t, run.Start())
		return run, said
	}

	run, said := start(args(kernels, "--", "--partition", "build", "--exclusive"))
	var lost *machine // one of the nodes that build now
	for lost == nil {
		assert.NilError(t, ctx.Err())
		time.Sleep(200 * time.Millisecond)
		for _, node := range c.nodes {
			if node.runs(sleeping) {
				lost = node
			}
		}
	}
	task := strings.TrimSpace(c.ask(t, "squeue", "--noheader", "--nodelist="+lost.name, "--array", "--format=%i"))
	lost.lose()
	if !nightly {
		// What Slurm would find out by SlurmdTimeout, and wait for.
		c.ask(t, "scontrol", "update", "nodename="+lost.name, "state=down", "reason=lost")
		waitFor(t, func() bool {
			return strings.HasPrefix(c.ask(t, "squeue", "--noheader", "--jobs="+task, "--format=%T"), "PENDING")
		})
		c.ask(t, "scontrol", "update", "jobid="+task, "starttime=now")
	}
	assert.NilError(t, run.Wait(), "%s", said)
	t.Logf("%s", said)
	want := map[string]bool{kernels[0] + " slow-dkms built": true, kernels[1] + " slow-dkms built": true}
	assert.DeepEqual(t, builtIn(t, out), want)
	assert.Equal(t, len(debFiles(t, out)), 2)
	command{name: "repoindex", args: []string{"--verify", out}}.run(t).mustExit(t, 0)
	_, index, _ := strings.Cut(task, "_")
	log, err := os.ReadFile(filepath.Join(out, ".dkms2bin-slurm", index+".log"))
	assert.NilError(t, err)
	nodes := regexp.MustCompile(`dkms2bin-slurm: \S+ on (n[123])\n`).FindAllSubmatch(log, -1)
	assert.Assert(t, len(nodes) == 2 && string(nodes[0][1]) == lost.name && string(nodes[1][1]) != lost.name, "%s", log)
	left, err := filepath.Glob(filepath.Join(c.own(lost.name), "trees", "*"))
	assert.NilError(t, err)
	assert.Equal(t, len(left), 1)

	// Nothing is missing; then a package is, and others come, of which one fails. The
	// node that comes back finds what it was lost with.
	command{name: "dkms2bin-slurm", args: args(kernels), env: c.env()}.run(t).mustExit(t, 0).mustSay(t, "nothing is missing in "+out)
	gone, err := filepath.Glob(filepath.Join(out, "slow-modules-"+kernels[1]+"_*.deb"))
	assert.NilError(t, err)
	assert.NilError(t, os.Remove(gone[0]))
	bad := goodModule("bad")
	bad["bad.c"] += "#error it is bad\n"
	c.start(t, lost.name, cache)
	waitFor(t, func() bool {
		return strings.Contains(c.ask(t, "sinfo", "--noheader", "--nodes="+lost.name, "--format=%T"), "idle")
	})
	for name := range c.nodes {
		if name != lost.name {
			c.ask(t, "scontrol", "update", "nodename="+name, "state=drain", "reason=test")
		}
	}
	again, also := kernels[1:], []string{"--per", "package", "--dkms", source(t, "bad", bad)}
	if nightly {
		again, also = kernels, append(also, "bbswitch-dkms")
	}
	r := command{name: "dkms2bin-slurm", args: args(again, also...), env: c.env()}.run(t).mustExit(t, 3)
	r.mustSay(t, slow+": 1 built\n", fmt.Sprintf("%[1]d of %[1]d tasks done", len(also)-2), "bad: builds failed: bad\n", "hint: its log is "+out+"/.dkms2bin-slurm/")
	for _, k := range again {
		want[k+" bad failed"] = true
		if nightly {
			want[k+" bbswitch-dkms built"] = true
		}
	}
	assert.DeepEqual(t, builtIn(t, out), want)
	_, err = os.Stat(gone[0])
	assert.NilError(t, err)

	if nightly {
		// Of the flavour's kernels none is new; what could be built for is looked up here.
		mine := append(c.env(), "DKMS2BIN_CACHE_DIR="+cacheTo, "DKMS2BIN_WORK_DIR="+t.TempDir())
		command{name: "dkms2bin-slurm", args: []string{"--out-dir", out, "--dkms", slow, "--kver", "new", "--keep-kernels", "1"}, env: mine}.run(t).mustExit(t, 0).mustSay(t, "nothing is missing in "+out)

		// Interrupted: the tasks end.
		run, said = start(args(kernels, "--all"))
		waitFor(t, func() bool { return c.nodes[lost.name].runs(sleeping) })
		command{name: "dkms2bin-slurm", args: args(kernels), env: c.env()}.run(t).mustExit(t, 1).mustSay(t, "a run for "+out+" is at work")
		assert.NilError(t, unix.Kill(-run.Process.Pid, unix.SIGINT)) // as Ctrl-C does
		var exit *exec.ExitError
		assert.Assert(t, errors.As(run.Wait(), &exit))
		assert.Equal(t, exit.ExitCode(), 130, "%s", said)
		assert.Assert(t, strings.Contains(said.String(), "dkms2bin-slurm: cancelling the tasks\n"), "%s", said)
	}
	for name := range c.nodes {
		noTrees(t, c.own(name))
	}
}

// TestSlurmUser: the tasks of an ordinary user with subordinate IDs build as that user.
func TestSlurmUser(t *testing.T) {
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("nightly only: the user has a base system to make")
	}
	t.Parallel()
	base := sharedBase(t)
	kver := shared.doc.Kernels[0].Release
	c := newCluster(t, cacheTo, "n1")
	cred, home := newUser(t)
	module, archive, out := filepath.Join(home, "mine"), filepath.Join(home, "base.tar"), filepath.Join(home, "modules")
	mustRun(t, "cp", "-r", source(t, "mine", goodModule("mine")), module)
	mustRun(t, "tar", "-C", base, "-cf", archive, ".")
	mustRun(t, "chown", "-R", fmt.Sprintf("%d:%d", cred.Uid, cred.Gid), home)
	env := append(c.env(), "HOME="+home, "XDG_CACHE_HOME=")
	command{name: "dkms2bin-slurm", env: env, dir: "/", user: cred, args: []string{
		"--dkms", module, "--kver", kver, "--base", archive, "--out-dir", out, "--work-dir", filepath.Join(home, "node"), "--wait",
	}}.run(t).mustExit(t, 0).mustSay(t, kver+": 1 built\n")
	assert.DeepEqual(t, builtIn(t, out), map[string]bool{kver + " mine built": true})
	assert.Equal(t, mustRun(t, "find", out, "!", "-uid", fmt.Sprint(cred.Uid)), "")
	noTrees(t, filepath.Join(home, "node"))
}

// TestSlurmUsage: what is wrong shows before anything is submitted.
func TestSlurmUsage(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	for says, args := range map[string][]string{
		"--per node: it is kernel or package":                             {"--per", "node"},
		"--per needs a value":                                             {"--per"},
		"--document is not for many machines":                             {"--document", "1.json"},
		"error: --dkms is required":                                       {"--wait"},
		"error: unknown option --nodes":                                   {"--dkms", "x-dkms", "--nodes", "3"},
		"index-description: its value cannot stand in a file":             {"--dkms", "x-dkms", "--index-description", "our #1"},
		"/100%: sbatch would expand the %":                                {"--dkms", "x-dkms", "--out-dir", filepath.Join(out, "100%")},
		"error: --set is of all modules of a kernel: it does not go with": {"--dkms", "x-dkms", "--set", "site", "--per=package"},
	} {
		command{name: "dkms2bin-slurm", args: append([]string{"--out-dir", out}, args...), env: []string{"SLURM_CONF=/dev/null"}}.run(t).mustExit(t, 2).mustSay(t, says)
	}
}

// TestManyHosts runs the README's command for hosts without a scheduler: these are
// servers on the loopback interface, each with trees of its own.
func TestManyHosts(t *testing.T) {
	t.Parallel()
	if os.Getenv("DKMS2BIN_NIGHTLY") == "" {
		t.Skip("builds four times: DKMS2BIN_NIGHTLY is not set")
	}
	readme, err := os.ReadFile("../../README.md")
	assert.NilError(t, err)
	line := regexp.MustCompile("(?s)```sh\n(parallel --sshlogin .*?)```").FindSubmatch(readme)
	assert.Assert(t, line != nil)
	sharedTree(t) // the cache has what it is made of
	kernels := []string{currentKernel(t, "amd64"), currentKernel(t, "cloud-amd64")}
	dir, out := t.TempDir(), t.TempDir()
	for _, key := range []string{"host", "user"} {
		mustRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	const place = "/run/sshd"
	if err := os.Mkdir(place, 0o755); err == nil {
		t.Cleanup(func() { assert.NilError(t, os.Remove(place)) })
	}
	clients := ""
	for _, name := range []string{"build1.example.org", "build2.example.org"} {
		port, own := freePort(t), filepath.Join(workDir, name)
		config := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %[2]s/host\nPidFile none\nAuthorizedKeysFile %[2]s/user.pub\nStrictModes no\nUsePAM no\n"+
			"SetEnv DKMS2BIN_CACHE_DIR=%[3]s DKMS2BIN_WORK_DIR=%[4]s\n", port, dir, cacheTo, own)
		assert.NilError(t, os.WriteFile(filepath.Join(dir, name), []byte(config), 0o644))
		boot(t, name, filepath.Join(dir, name+".log"), `/usr/sbin/sshd -D -e -f "$1" & wait`, filepath.Join(dir, name))
		clients += fmt.Sprintf("Host %s\n  HostName 127.0.0.1\n  Port %d\n  User root\n  IdentityFile %[3]s/user\n  IdentitiesOnly yes\n"+
			"  UserKnownHostsFile %[3]s/known\n  StrictHostKeyChecking accept-new\n", name, port, dir)
		waitFor(t, func() bool {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			return err == nil && conn.Close() == nil
		})
		defer noTrees(t, own)
	}
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "clients"), []byte(clients), 0o644))

	script := strings.NewReplacer("/srv/modules", out, "6.1.0-55-amd64", kernels[0], "6.1.0-56-amd64", kernels[1]).Replace(string(line[1]))
	for range 2 { // the second time there is nothing to do
		sh := exec.Command("sh", "-ec", script)
		sh.Dir = filepath.Dir(scripts)
		sh.Env = append(os.Environ(), "PARALLEL_SSH=ssh -F "+filepath.Join(dir, "clients"), "PARALLEL_HOME="+dir)
		said, err := sh.CombinedOutput()
		assert.NilError(t, err, "%s\n%s", script, said)
		t.Logf("%s\n%s", script, said)
	}
	want := map[string]bool{kernels[0] + " v4l2loopback-dkms built": true, kernels[1] + " v4l2loopback-dkms skipped": true}
	assert.DeepEqual(t, builtIn(t, out), want)
	command{name: "repoindex", args: []string{"--verify", out}}.run(t).mustExit(t, 0)
	for _, host := range []string{"build1", "build2"} {
		log, err := os.ReadFile(filepath.Join(dir, host+".example.org.log"))
		assert.NilError(t, err)
		assert.Equal(t, bytes.Count(log, []byte("Accepted publickey for root")), 1, "%s", log)
	}
}
