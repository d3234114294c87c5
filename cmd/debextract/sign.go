package main

import (
	"context"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/modsign"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// signing is what the flags say of signatures.
type signing struct {
	key, cert, command, passphraseFile string

	signer *modsign.Signer // nil where modules are not signed
}

func (g *signing) flags(fs *flag.FlagSet) {
	fs.StringVar(&g.key, "sign-key", "", "sign modules with the private key in this `file`, PEM; its passphrase comes from "+modsign.PassphraseVariable)
	fs.StringVar(&g.cert, "sign-cert", "", "`file` with the X.509 certificate of the key that signs modules, PEM or DER")
	fs.StringVar(&g.command, "sign-command", "", "sign modules by this `command` instead, for keys that are in no file")
	fs.StringVar(&g.passphraseFile, "sign-passphrase-file", "", "`file` with the passphrase of the key, in its first line")
}

// open reads what the flags name, and tries the key.
func (g *signing) open() error {
	switch {
	case g.key == "" && g.command == "" && g.cert == "" && g.passphraseFile == "":
		return nil
	case g.key != "" && g.command != "":
		return cli.Usagef("--sign-key and --sign-command: one of them signs, not both")
	case g.key == "" && g.command == "":
		return cli.Usagef("--sign-cert and --sign-passphrase-file are for --sign-key or --sign-command")
	case g.cert == "":
		return cli.Usagef("--sign-cert is required to sign modules: signatures are verified by it")
	}
	passphrase, err := g.passphrase()
	if err != nil {
		return err
	}
	signer := &modsign.Signer{Passphrase: passphrase, Command: g.command}
	if g.key != "" {
		if signer.Key, err = filepath.Abs(g.key); err != nil {
			return err
		}
	}
	if err := signer.Open(context.Background(), g.cert); err != nil {
		return cli.Usagef("cannot sign modules: %w", err)
	}
	g.signer = signer
	return nil
}

// passphrase is the one of the file, or else of the environment.
func (g *signing) passphrase() (string, error) {
	text := os.Getenv(modsign.PassphraseVariable)
	if g.passphraseFile != "" {
		raw, err := os.ReadFile(g.passphraseFile)
		if err != nil {
			return "", cli.Usagef("--sign-passphrase-file: %w", err)
		}
		text, _, _ = strings.Cut(string(raw), "\n")
	}
	if len(text) > modsign.MaxPassphrase {
		return "", cli.Usagef("the passphrase of --sign-key is longer than %d bytes", modsign.MaxPassphrase)
	}
	return text, nil
}

// announce says by whom modules are signed.
func (g *signing) announce(msg *cli.Messenger) {
	if g.signer == nil {
		return
	}
	msg.Info("modules are signed by %s, key %s", g.signer.Name(), g.signer.KeyID())
	g.warn(msg)
}

// warn says whether the certificate is out of date.
func (g *signing) warn(msg *cli.Messenger) {
	if g.signer == nil {
		return
	}
	if text := g.signer.Warning(time.Now()); text != "" {
		msg.Warn("%s", text)
	}
}

// keyID is what the signatures name as their key; "" where modules are not signed.
func (g *signing) keyID() string {
	if g.signer == nil {
		return ""
	}
	return g.signer.KeyID()
}
