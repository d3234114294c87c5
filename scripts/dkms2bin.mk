# dkms2bin.mk: the pipeline for make. Targets are documents.
#
#	make -f scripts/dkms2bin.mk -j2 DKMS='i40e-dkms hpsa-dkms' \
#		KVERS='6.1.0-56-amd64 6.1.0-56-cloud-amd64' OUT_DIR=/srv/modules
#
# One tree serves all kernels; the rest runs for each kernel on its own, side by
# side with -j. Run again, it does what failed or is missing. A document of which
# some modules failed gets an old date, so that make never takes it for up to
# date, and make itself fails in the end. `clean` removes tree and documents.

DKMS ?=
KVERS ?=
OUT_DIR ?= modules
STATE_DIR ?= $(OUT_DIR)/state
MKCHROOT_FLAGS ?=
DKMSBUILD_FLAGS ?=
DEBEXTRACT_FLAGS ?=
BIN ?= $(dir $(realpath $(lastword $(MAKEFILE_LIST))))../bin/

kernels := $(or $(KVERS),current)
tree := $(STATE_DIR)/tree.json
builds := $(kernels:%=$(STATE_DIR)/build-%.json)
debs := $(kernels:%=$(STATE_DIR)/debs-%.json)

# $(call stage,COMMAND,CLEANUP) writes the document $@. Exit 3 says that some
# modules failed: the document is good for the next stage.
define stage
@mkdir -p $(STATE_DIR)
@$(1) >$@.new; code=$$?; \
case $$code in \
0) mv $@.new $@ ;; \
3) mv $@.new $@ && touch -d @0 $@ ;; \
*) $(2) exit $$code ;; \
esac
endef

.PHONY: all index clean
.DELETE_ON_ERROR:

all: index
	@jq -rn '[inputs.builds[]? | select(.status == "failed")] | .[] | "failed: \(.package) for \(.kernel): \(.reason)"' $(debs) >&2
	@jq -en '[inputs.builds[]? | select(.status == "failed")] == []' $(debs) >/dev/null || exit 3

index: $(debs)
	@$(BIN)repoindex $(OUT_DIR) >$(STATE_DIR)/index.json

$(tree):
	$(call stage,$(BIN)mkchroot $(KVERS:%=--kver %) $(MKCHROOT_FLAGS),$(BIN)rmchroot <$@.new >/dev/null;)

# An older document of this kernel is taken up again: that is the partial rerun.
$(builds): $(STATE_DIR)/build-%.json: $(tree)
	$(call stage,$(BIN)dkmsbuild $(DKMS:%=--dkms %) $(if $(KVERS),--kver $*) $(DKMSBUILD_FLAGS) <$(or $(wildcard $@),$<))

$(debs): $(STATE_DIR)/debs-%.json: $(STATE_DIR)/build-%.json
	$(call stage,$(BIN)debextract --out-dir $(OUT_DIR) $(DEBEXTRACT_FLAGS) <$<)

clean:
	@[ ! -e $(tree) ] || $(BIN)rmchroot <$(tree) >/dev/null
	rm -rf $(STATE_DIR)
