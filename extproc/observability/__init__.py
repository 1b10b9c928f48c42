# SPDX-License-Identifier: Apache-2.0
"""What the process tells its operators: log lines and metrics."""
