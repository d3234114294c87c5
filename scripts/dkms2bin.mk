# dkms2bin.mk: the pipeline for make. Targets are documents.
#
#	make -f scripts/dkms2bin.mk -j2 DKMS='i40e-dkms hpsa-dkms' \
#		KVERS='6.1.0-56-amd64 6.1.0-56-cloud-amd64' OUT_DIR=/srv/modules
#
# One tree serves all kernels; the rest runs for each kernel on its own, side by
# side with -j. Run again, it does what failed or is missing. A document of which
# some modules failed gets an old date, so that make never takes it for up to
# date, and make itself fails in the end. `clean` removes tree and documents.
#
# A document is written as DOCUMENT.new and renamed when it is good; what is found
# as .new is what an error, or the end of make, left.

DKMS ?=
KVERS ?=
OUT_DIR ?= modules
STATE_DIR ?= $(OUT_DIR)/state
MKCHROOT_FLAGS ?=
DKMSBUILD_FLAGS ?=
DEBEXTRACT_FLAGS ?=
REPOINDEX_FLAGS ?=
# In a checkout, or in an installation; else from PATH.
here := $(dir $(realpath $(lastword $(MAKEFILE_LIST))))
BIN ?= $(dir $(realpath $(firstword $(wildcard $(here)../bin/mkchroot $(here)../../lib/dkms2bin/mkchroot))))

kernels := $(or $(KVERS),current)
tree := $(STATE_DIR)/tree.json
builds := $(kernels:%=$(STATE_DIR)/build-%.json)
debs := $(kernels:%=$(STATE_DIR)/debs-%.json)

# $(call stage,COMMAND,CLEANUP) writes the document $@. Exit 3 says that some
# modules failed: the document is good for the next stage. Ctrl-C is for COMMAND:
# the shell must survive it, for the cleanup's sake.
define stage
@mkdir -p $(STATE_DIR)
@trap : HUP INT TERM; \
$(1) >$@.new; code=$$?; \
case $$code in \
0) mv $@.new $@ ;; \
3) $(call take,$@.new,$@) ;; \
*) $(2) exit $$code ;; \
esac
endef

# $(call take,NEW,DOCUMENT) renames with an old date. It is another one each time:
# make takes a file that kept its date for unchanged, and would leave out what was
# built beside a module that failed again.
take = touch -d '10 years ago' $(1) && mv $(1) $(2)

# $(call of_tree,DOCUMENT) says whether the document is there, whole, and of the
# tree of $<.
of_tree = jq -es '.[0].tree.path != null and .[0].tree.path == .[1].tree.path' $(1) $< >/dev/null 2>&1

# $(call remove,DOCUMENT) removes the document's tree, then the document. The tree
# is an operand, since of a document rmchroot would hand on the error of mkchroot.
# Its exit 2 says that the tree is gone already, its 1 that the tree is in use. A
# document that jq cannot read names no tree; 127 is jq missing.
define remove
if [ -s $(1) ]; then \
	path=$$(jq -r '.tree | select(.removed | not) | .path // empty' $(1)) || [ $$? -lt 126 ] || exit 1; \
	[ -z "$$path" ] || $(BIN)rmchroot "$$path" >/dev/null || [ $$? -eq 2 ] || exit 1; \
	rm -f $(1); \
fi
endef

# $(call failures,DOCUMENT...) prints a line for each failed build, and for each
# file that was left out of the index.
failures = jq -rs '[.[] | (.builds[]? | select(.status == "failed") | "failed: \(.package) for \(.kernel): \(.reason)"), \
	(.index.left_out[]? | "not indexed: \(.path): \(.reason)") | gsub("\\s*\n\\s*"; " ")] | unique[]' $(1)

.PHONY: all index clean
# An interrupted make deletes targets that have just changed, and with tree.json
# the name of the tree. All documents are whole, so none needs that.
.PRECIOUS: $(tree) $(builds) $(debs)

all: index
	@list=$$($(call failures,$(debs) $(STATE_DIR)/index.json)) || exit 1; \
	[ -z "$$list" ] || { printf '%s\n' "$$list" >&2; exit 3; }

# Each document brings the records of its builds. Exit 3 says that builds failed
# or files were left out; `all` names them.
index: $(debs)
	@for document in $(debs); do \
		$(BIN)repoindex $(REPOINDEX_FLAGS) <$$document >$(STATE_DIR)/index.json.new || [ $$? -eq 3 ] || exit 1; \
	done
	@mv $(STATE_DIR)/index.json.new $(STATE_DIR)/index.json

$(tree):
	@$(call remove,$@.new)
	$(call stage,$(BIN)mkchroot $(KVERS:%=--kver %) --out-dir $(OUT_DIR) $(MKCHROOT_FLAGS),$(call remove,$@.new);)

# An older document of this kernel is taken up again: that is the partial rerun.
# What a run that failed or was interrupted had built before counts as well.
$(builds): $(STATE_DIR)/build-%.json: $(tree)
	@if $(call of_tree,$@.new); then $(call take,$@.new,$@); fi
	$(call stage,if $(call of_tree,$@); then input=$@; else input=$<; fi; \
	$(BIN)dkmsbuild $(DKMS:%=--dkms %) $(if $(KVERS),--kver $*) $(DKMSBUILD_FLAGS) <$$input)

$(debs): $(STATE_DIR)/debs-%.json: $(STATE_DIR)/build-%.json
	$(call stage,$(BIN)debextract --out-dir $(OUT_DIR) $(DEBEXTRACT_FLAGS) <$<)

clean:
	@$(call remove,$(tree).new)
	@$(call remove,$(tree))
	rm -rf $(STATE_DIR)
