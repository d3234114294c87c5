package main

import (
	"bytes"
	"cmp"
	"context"
	"dkms2bin/internal/audit"
	"dkms2bin/internal/cli"
	"dkms2bin/internal/diag"
	"dkms2bin/internal/state"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

var against = map[audit.Against]string{
	audit.Headers: state.AgainstHeaders, audit.Modules: state.AgainstModules, audit.Nothing: state.AgainstNothing,
}

var verdicts = map[audit.Verdict]string{
	audit.Loads: state.LoadsYes, audit.Fails: state.LoadsNo, audit.Unknown: state.LoadsUnknown,
}

// auditRoot lists the modules of a root tree that are not its kernels' own.
func (o *options) auditRoot(ctx context.Context, s *cli.Session) error {
	dir, err := filepath.Abs(o.audit)
	if err != nil {
		return err
	}
	s.Msg.Announce("auditing the modules in %s", dir)
	report, err := audit.Root(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return diag.WithHint(cli.Usagef("%w", err), "--audit wants the root directory of a system, with /lib/modules in it")
	}
	if err != nil {
		return err
	}
	s.Doc.Audit = &state.Audit{Root: dir}
	for _, k := range report.Kernels {
		s.Doc.Audit.Kernels = append(s.Doc.Audit.Kernels, state.InstalledKernel{Release: k.Release, Modules: k.Own, Against: against[k.Against]})
	}
	for _, m := range report.Modules {
		s.Doc.Audit.Modules = append(s.Doc.Audit.Modules, state.InstalledModule{
			Path: m.Path, Kernel: m.Kernel, Name: m.Name, Version: m.Version, License: m.License,
			Package: m.Package, PackageVersion: m.PackageVersion, Altered: m.Altered,
			Signer: m.Signature.Signer, SigKey: m.Signature.Key, SigHash: m.Signature.Hash,
			Replaces: m.Replaces, Loads: verdicts[m.Verdict], Reason: m.Reason,
		})
	}
	if !report.Owners {
		s.Msg.Warn("%s has no /var/lib/dpkg: nobody can tell which package a module is of", dir)
	}
	printAudit(s.Msg, s.Doc.Audit)
	return nil
}

// printAudit is the document's record for people: a table, and a warning for each module
// that somebody has to look at.
func printAudit(msg *cli.Messenger, a *state.Audit) {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KERNEL\tMODULE\tVERSION\tPACKAGE\tSIGNER\tLOADS")
	wrong, unknown := 0, 0
	for _, m := range a.Modules {
		from := m.Package
		if from != "" {
			from += " " + m.PackageVersion
		}
		signer := cmp.Or(m.Signer, m.SigKey)
		file := strings.TrimPrefix(m.Path, "/lib/modules/"+m.Kernel+"/")
		for i, field := range []string{m.Kernel, file, m.Version, from, signer, m.Loads} {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cmp.Or(strings.ReplaceAll(diag.Printable(field), "\t", " "), "-"))
		}
		fmt.Fprintln(w)
		if m.Wrong() {
			wrong++
		} else if m.Loads == state.LoadsUnknown {
			unknown++
		}
	}
	_ = w.Flush() // into memory
	if len(a.Modules) > 0 {
		for line := range strings.Lines(table.String()) {
			msg.Info("%s", strings.TrimRight(line, " \n"))
		}
	}
	for _, m := range a.Modules {
		path := diag.Printable(m.Path)
		if m.Package == "" {
			msg.Warn("%s: no package owns it", path)
		}
		if m.Altered {
			msg.Warn("%s: it is not the file that %s %s had", path, m.Package, m.PackageVersion)
		}
		if m.Loads == state.LoadsNo {
			msg.Warn("%s: %s cannot load it: %s", path, m.Kernel, diag.Printable(m.Reason))
		}
		if m.Loads == state.LoadsUnknown {
			msg.Info("%s: nobody can tell whether %s loads it: %s", path, m.Kernel, diag.Printable(m.Reason))
		}
	}
	msg.Info("modules that are not the kernels' own: %d, kernels: %d, something wrong: %d, nobody can tell whether they load: %d",
		len(a.Modules), len(a.Kernels), wrong, unknown)
}
