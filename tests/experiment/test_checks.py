"""What planning refuses before anything is read."""

import pytest

from harness.backbones.language_model.needs import SUPPLIERS
from harness.core.errors import UserError
from harness.experiment.checks import check_needs
from losses import get_loss, list_losses, register_loss, register_need


def test_a_language_model_supplies_what_every_loss_needs():
    check_needs(map(get_loss, [*list_losses(), "dpo+wpo"]), SUPPLIERS)


def test_a_loss_whose_need_a_backbone_does_not_supply_is_refused():
    fewer = {need: supplier for need, supplier in SUPPLIERS.items() if need != "confidence"}
    message = r"loss 'dpo\+wpo': this backbone does not supply 'confidence'; it supplies reference, scores, "
    with pytest.raises(UserError, match=message):
        check_needs([get_loss("dpo+wpo")], fewer)


def test_a_need_of_the_user_s_own_is_supplied_by_every_backbone():
    register_need("test_only")(lambda split: ([], []))

    @register_loss("reads_it", needs=["test_only"])
    def reads_it(batch):
        """Never called."""

    check_needs([get_loss("reads_it")], {})
