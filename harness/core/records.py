"""What a run leaves and a report reads."""

SFT = "sft"  # the row of the policy that every loss starts from
