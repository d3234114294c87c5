package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// A relay carries bytes between the user's terminal and a terminal of the
// sandbox's own. Were the user's handed in, what runs inside could type into it
// (TIOCSTI of ioctl_tty(2)), and the shell outside would obey.
type relay struct {
	user, inner *os.File // the inner one's controlling side
	slave       *os.File // until the command has started
	saved       *unix.Termios
	resized     chan os.Signal
	done        chan struct{}
}

func newRelay(user *os.File) (r *relay, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make a terminal for the sandbox: %w", err)
		}
	}()
	inner, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var number int
	err = unix.IoctlSetPointerInt(int(inner.Fd()), unix.TIOCSPTLCK, 0)
	if err == nil {
		number, err = unix.IoctlGetInt(int(inner.Fd()), unix.TIOCGPTN)
	}
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return &relay{user: user, inner: inner, slave: slave, resized: make(chan os.Signal, 1), done: make(chan struct{})}, nil
}

// start lets bytes flow once the command holds its side of the terminal.
func (r *relay) start() error {
	if err := r.slave.Close(); err != nil {
		return err
	}
	r.slave = nil
	r.resize()
	saved, err := unix.IoctlGetTermios(int(r.user.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("cannot read the terminal's settings: %w", err)
	}
	r.saved = saved
	raw := *saved // as cfmakeraw of termios(3) has it
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag &^= unix.CSIZE | unix.PARENB
	raw.Cflag |= unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(r.user.Fd()), unix.TCSETS, &raw); err != nil {
		return fmt.Errorf("cannot set the terminal: %w", err)
	}
	signal.Notify(r.resized, unix.SIGWINCH)
	go func() {
		for range r.resized {
			r.resize()
		}
	}()
	go func() {
		// Ends with the program: a read of the user's terminal cannot be
		// taken back.
		_, _ = io.Copy(r.inner, r.user)
	}()
	go func() {
		defer close(r.done)
		_, _ = io.Copy(r.user, r.inner) // EIO when the last process inside is gone
	}()
	return nil
}

func (r *relay) resize() {
	if size, err := unix.IoctlGetWinsize(int(r.user.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(r.inner.Fd()), unix.TIOCSWINSZ, size)
	}
}

// stop gives the user's terminal back as it was.
func (r *relay) stop() error {
	if r.slave != nil {
		r.slave.Close()
	}
	if r.saved == nil {
		return r.inner.Close()
	}
	<-r.done
	signal.Stop(r.resized)
	close(r.resized)
	return errors.Join(r.inner.Close(), unix.IoctlSetTermios(int(r.user.Fd()), unix.TCSETS, r.saved))
}
