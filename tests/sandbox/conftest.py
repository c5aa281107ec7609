def pytest_addoption(parser):
    parser.addoption('--exchange', default='sandbox', choices=('sandbox', 'demo'), help='whom test_conformance.py speaks to; demo needs BINANCE_DEMO_KEY and BINANCE_DEMO_SECRET')
