# SPDX-License-Identifier: Apache-2.0
"""What there is: whatever the source, one immutable Snapshot at a time, swapped as a whole."""
