# SPDX-License-Identifier: Apache-2.0
"""What a release is made of, beside the program: the image's tree, its sizes, its SBOM, its licences.

No container engine is needed: `tree` executes the Dockerfile's own steps in a folder.
"""
