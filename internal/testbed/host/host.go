// Package host gives a program a host of its own: new mount, network, process,
// IPC and host name namespaces, in which real daemons can be started as root and
// nothing of the machine underneath is seen, changed or left behind.
//
// Inside, /run, /dev and libvirt's directories are private, so
// that no D-Bus, systemd or other libvirtd is found; the network is a loopback
// device and a default route that leads nowhere; [User] is an ordinary user. When
// the program ends, or whoever started it, the kernel ends every process that it
// left.
//
// It needs root, which it asks of sudo where it has to.
package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The program is started again for each step on the way inside. The environment
// variable tells it where it stands.
const (
	stepVariable = "TESTBED_HOST"
	// stepRoot: root, by sudo, still in the machine's namespaces.
	stepRoot = "root"
	// stepInit: process 1 of the new namespaces; makes the host and waits.
	stepInit = "init"
	// stepInside: the program itself.
	stepInside = "inside"
)

// Inside says whether the program runs on a host of its own.
func Inside() bool { return os.Getenv(stepVariable) == stepInside }

// Rerun starts this program again, with the same arguments, on a host of its
// own and returns its exit code. A program calls it first of all unless it is
// [Inside]. Of the environment only PATH, TERM, GOCOVERDIR and what begins with
// TESTBED_ comes along.
func Rerun() (int, error) {
	switch os.Getenv(stepVariable) {
	case "":
		if os.Geteuid() != 0 {
			return rerunAsRoot()
		}
		return rerunInNamespaces(nil)
	case stepRoot:
		// sudo does not pass on that its parent died; the end of standard input does.
		return rerunInNamespaces(os.Stdin)
	case stepInit:
		return initialize()
	default:
		return 1, errors.New("host: Rerun called inside")
	}
}

func rerunAsRoot() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	if _, err := exec.LookPath("sudo"); err != nil {
		return 1, errors.New("a host of one's own needs root: there is no sudo; run this as root")
	}
	args := append([]string{"--", "/usr/bin/env", "-i"}, environment(stepRoot)...)
	cmd := exec.Command("sudo", append(append(args, self), os.Args[1:]...)...)
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer hold.Close()
	cmd.Stdin = lifeline
	return run(cmd)
}

// rerunInNamespaces starts process 1. The namespaces end with it, and it ends
// with this process or when lifeline does.
func rerunInNamespaces(lifeline *os.File) (int, error) {
	if err := refuseChroot(); err != nil {
		return 1, err
	}
	if lifeline == nil {
		end, hold, err := os.Pipe()
		if err != nil {
			return 1, err
		}
		defer hold.Close()
		lifeline = end
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = environment(stepInit)
	cmd.Stdin = lifeline
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// Pdeathsig is about the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return run(cmd)
}

// refuseChroot is an error in a chroot. libvirt enters the mount namespaces of
// its machines by setns(2), which leaves a chroot: it would make its device nodes
// in the real /dev. (A container with a root of its own is no chroot.)
func refuseChroot() error {
	var ours, namespace unix.Stat_t
	if err := unix.Stat("/", &ours); err != nil {
		return err
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread leaves the chroot, and ends with this goroutine.
		runtime.LockOSThread()
		err = statNamespaceRoot(&namespace)
	}()
	<-done
	if err != nil {
		return fmt.Errorf("look whether this is a chroot: %w", err)
	}
	if ours.Dev != namespace.Dev || ours.Ino != namespace.Ino {
		return errors.New("a host of one's own cannot be made in a chroot, which libvirt would leave: use a container or the machine itself")
	}
	return nil
}

// statNamespaceRoot enters the mount namespace in which this thread is already,
// and so gets its root.
func statNamespaceRoot(root *unix.Stat_t) error {
	namespace, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return unix.Stat("/", root)
}

func run(cmd *exec.Cmd) (int, error) {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, fmt.Errorf("start on a host of its own: %w", err)
	}
	return 0, nil
}

// environment is what of the environment goes along.
func environment(step string) []string {
	env := []string{stepVariable + "=" + step}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case name == stepVariable:
		case name == "PATH":
			// Where libvirtd and ip are is not in every user's PATH.
			env = append(env, pair+":/usr/sbin:/sbin")
		case name == "TERM", name == "GOCOVERDIR", strings.HasPrefix(name, "TESTBED_"):
			env = append(env, name+"="+value)
		}
	}
	return env
}

// initialize is process 1: it makes the host, starts the program, and collects
// the orphans of the host until the program has ended.
func initialize() (int, error) {
	if err := makeHost(); err != nil {
		return 1, fmt.Errorf("make a host: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 1, err
	}
	program, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   append(environment(stepInside), "HOME="+RootHome, "TMPDIR="+TempDir, "USER=root", "LC_ALL=C.UTF-8"),
		Files: []*os.File{null, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 1, err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // whoever started us is gone: so is this host
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for process %d: %w", program.Pid, err)
		case pid == program.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == program.Pid:
			return status.ExitStatus(), nil
		}
	}
}
