"""``python -m edgekit`` lists the verbs; ``python -m edgekit VERB`` runs one."""

from edgekit.cli import main

raise SystemExit(main())
