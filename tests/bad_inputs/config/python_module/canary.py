open('CANARY', 'w')
